"""The training step on real tiny models: through the gradient cache its gradients are those of the plain step."""

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tests.gradients import assert_gradients_equal, relative_difference, take_gradients
from tests.pictures import make_picture
from tests.targets import make_targets
from tests.tiny.towers import tiny_timm
from tests.tiny.vision import tiny_convnext
from vembed.data.batches.augment import image_transform
from vembed.data.hashing import content_hash
from vembed.errors import VembedError
from vembed.grad_cache.cachex import functional
from vembed.grad_cache.cachex.tree_utils import concat_rows, split_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.objective import Objective
from vembed.losses.settings import LossSettings
from vembed.model.learning.scale import set_temperature
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import get_scorer
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.step.chunking import Chunking, chunk_batch
from vembed.types import Batch, Embeddings, EncodedItem, ImageSource, Inputs, Item, ItemRows, Side

SIGLIP = pytest.param("siglip", marks=pytest.mark.slow)  # to the step it is what CLIP is
FAMILIES = ["clip", SIGLIP, "bert", "dinov2", "timm", "composed"]
NUM_QUERIES, NUM_DOCUMENTS = 7, 11
ALL = 100
MIXED = "tibtbit"  # per row: text, image, or both
WORDS = "red blue green small large round square bright dark picture sign shape".split()


@pytest.fixture(scope="session")
def folders(clip_folder, siglip_folder, bert_folder, dinov2_folder, timm_folder, tmp_path_factory) -> dict[str, str]:
    """A folder per family, dropout (or drop path) on wherever the architecture has it."""
    root = tmp_path_factory.mktemp("with-dropout")
    sources = {"clip": clip_folder, "siglip": siglip_folder, "bert": bert_folder, "dinov2": dinov2_folder}
    copies = {name: with_dropout(Path(source), root / name) for name, source in sources.items()}
    return copies | {"timm": timm_folder}


def with_dropout(source: Path, target: Path) -> str:
    shutil.copytree(source, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in set(part) & {"attention_dropout", "hidden_dropout_prob", "drop_path_rate"}:
            part[key] = 0.2
    path.write_text(json.dumps(config))
    return str(target)


def load(folders: dict[str, str], family: str, **settings: object) -> VisualRetrievalModel:
    """A model of the family in float64 and eval mode; without settings, a copy of what was loaded once."""
    if settings:
        return _load(folders, family, **settings)
    key = folders.get(family, family)
    if key not in _PLAIN:
        _PLAIN[key] = _load(folders, family)
    return copy.deepcopy(_PLAIN[key])


_PLAIN: dict[str, VisualRetrievalModel] = {}  # by its folder


def _load(folders: dict[str, str], family: str, **settings: object) -> VisualRetrievalModel:
    if family == "composed":
        towers = {"text_model_name": folders["bert"], "image_model_name": folders["dinov2"]}
        pair = VisualRetrievalModel.from_pretrained(settings=ModelSettings(**towers, projection_dim=12, **settings))
    elif family == "colbert":
        late = {"encoder_mode": "colbert", "projection_dim": 12, "num_query_tokens": 12}
        pair = VisualRetrievalModel.from_pretrained(folders["bert"], ModelSettings(**late, **settings))
    else:
        pair = VisualRetrievalModel.from_pretrained(folders[family], ModelSettings(**settings))
    pair.model.double()
    return pair


def make_item(kind: str, number: int) -> Item:
    text = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 3 + number % 4))
    image = ImageSource(pil=make_picture(number))
    letter = chr(ord("a") + number % 26)
    return Item(text=None if kind == "i" else f"{text} {letter}", images=() if kind == "t" else (image,))


def make_batch(pair: VisualRetrievalModel, *, prepared: bool = True) -> Batch:
    """Rows of every kind that the model reads, two positives, ragged negatives, a group, a repeated caption.

    prepared: as Inputs; else as rows that are prepared chunk by chunk, as in training.
    """
    kinds = {("text",): "t" * 7, ("vision",): "i" * 7}.get(pair.spec.towers, MIXED)
    queries = [make_item(kinds[row], row) for row in range(NUM_QUERIES)]
    documents = [make_item(kinds[::-1][row % 7], 100 + row) for row in range(NUM_DOCUMENTS)]
    targets = make_targets(
        [[0], [1, 7], [2], [3], [4], [5], [6]],
        NUM_DOCUMENTS,
        negatives=[[], [8, 9], [], [10], [], [], []],
        query_groups=[-1, -1, 3, -1, -1, 3, -1],
        document_groups=[-1, -1, 3, -1, -1, 3, -1, -1, -1, -1, -1],
        query_hashes=[1, 2, 3, 4, 5, 6, 5],
        document_hashes=range(10, 10 + NUM_DOCUMENTS),
    )
    processor = pair.processor
    make = processor.prepare if prepared else lambda items, side: ItemRows(tuple(map(processor.load, items)), side)
    return Batch(
        make(queries, "query"),
        make(documents, "document"),
        targets,
        origins=tuple(f"train.jsonl:{row + 1}" for row in range(NUM_QUERIES)),
    )


def objective_of(pair: VisualRetrievalModel) -> Objective:
    return LossFactory.create(LossSettings(), scorer=get_scorer(pair.spec.similarity, pair.spec.scoring))


def trainer_of(
    pair: VisualRetrievalModel, chunk_size: int | None, retain: float | None = None, **options: object
) -> GradientCacheTrainer:
    settings = GradCacheSettings(
        use_gradient_cache=chunk_size is not None,
        gradient_cache_chunk_size=chunk_size or 1,
        gradient_cache_retain=retain,
    )
    return GradientCacheTrainer(pair.model, pair.processor, objective_of(pair), settings, **options)


def step_gradients(
    pair: VisualRetrievalModel, batch: Batch, chunk_size: int | None, retain: float | None = None
) -> tuple[float, dict[str, Tensor]]:
    loss = trainer_of(pair, chunk_size, retain).step(batch).loss
    return loss, take_gradients(pair.model.named_parameters())


def graph_gradients(pair: VisualRetrievalModel, batch: Batch, chunk_size: int) -> tuple[float, dict[str, Tensor]]:
    """One graph over all chunks, without the trainer: what the step must equal."""

    def encode(inputs: Inputs) -> Embeddings:
        return concat_rows([pair.model(pair.processor.finish(chunk)) for chunk in split_rows(inputs, chunk_size)])

    loss = objective_of(pair)(
        encode(batch.queries),
        encode(batch.documents),
        batch.targets,
        logit_scale=pair.model.logit_scale,
        logit_bias=pair.model.logit_bias,
    )
    loss.backward()
    return loss.item(), take_gradients(pair.model.named_parameters())


@contextmanager
def counted_rows(module: nn.Module) -> Iterator[list[int]]:
    """Notes how many rows (or images) each forward of the module has."""
    seen: list[int] = []

    def note(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        first = next(iter([*args, *kwargs.values()]))
        seen.append(first.num_rows if isinstance(first, Inputs) else len(first))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


@pytest.mark.parametrize("chunk_size", [1, 3, 7, ALL, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_has_the_gradient_of_one_graph(folders, family, chunk_size):
    pair = load(folders, family)
    batch = make_batch(pair)
    expected_loss, expected = graph_gradients(pair, batch, ALL)
    loss, gradients = step_gradients(pair, batch, chunk_size)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert loss > 0.1
    assert "logit_scale" in gradients
    assert_gradients_equal(gradients, expected)


@pytest.mark.parametrize(("chunk_size", "retain"), [(1, None), (3, None), (3, 0.5), (3, 1.0), (7, None)])
@pytest.mark.parametrize("family", ["clip", "bert", "dinov2", "composed"])
def test_dropout_is_replayed(folders, family, chunk_size, retain):
    pair = load(folders, family)
    pair.model.train()
    batch = make_batch(pair)
    torch.manual_seed(1)
    expected_loss, expected = graph_gradients(pair, batch, chunk_size)
    other_loss, _ = graph_gradients(pair, batch, chunk_size)
    assert abs(other_loss - expected_loss) > 1e-6, "dropout must be on for this test to say anything"
    torch.manual_seed(1)
    loss, gradients = step_gradients(pair, batch, chunk_size, retain)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_gradients_equal(gradients, expected)


@pytest.mark.parametrize("family", ["clip", "bert", "dinov2", "composed"])
def test_a_replay_with_other_random_numbers_would_be_seen(folders, family, monkeypatch):
    pair = load(folders, family)
    pair.model.train()
    batch = make_batch(pair)
    torch.manual_seed(1)
    _, expected = graph_gradients(pair, batch, 3)
    monkeypatch.setattr(functional, "RandContext", lambda *_tensors: nullcontext())
    torch.manual_seed(1)
    _, gradients = step_gradients(pair, batch, 3)
    assert relative_difference(gradients, expected) > 1e-3


@pytest.mark.parametrize("retain", [0.0, 0.5])
@pytest.mark.parametrize("family", ["timm", "convnext", "dinov2"])
def test_dropped_paths_are_dropped_again(folders, tmp_path, family, retain):
    """timm, ConvNeXt and DINOv2 have a drop path of their own each."""
    if family == "timm":
        folders = {"timm": tiny_timm(tmp_path, architecture="test_vit")}
    elif family == "convnext":
        folders = {"convnext": with_dropout(Path(tiny_convnext(tmp_path / "still")), tmp_path / "dropping")}
    pair = load(folders, family)
    blocks = [module for module in pair.model.modules() if isinstance(module, Block)]
    for block in blocks:  # of timm, whose tiny network has none
        block.drop_path1 = DropPath(0.4)
    pair.model.train()
    paths = [module for module in pair.model.modules() if type(module).__name__.endswith("DropPath")]
    assert paths
    for path in paths:
        path.drop_prob = 0.4
    batch = make_batch(pair)
    torch.manual_seed(1)
    expected_loss, expected = graph_gradients(pair, batch, 3)
    assert abs(graph_gradients(pair, batch, 3)[0] - expected_loss) > 1e-6, "a path must be dropped"
    torch.manual_seed(1)
    loss, gradients = step_gradients(pair, batch, 3, retain)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_gradients_equal(gradients, expected)


@pytest.mark.parametrize(("family", "told"), [("timm", True), ("clip", False)])
def test_batch_norms_keep_still_and_the_log_says_so_once(timm_folder, clip_folder, family, told, caplog):
    pair = load({"timm": timm_folder, "clip": clip_folder}, family)
    pair.model.train()
    batch = make_batch(pair)
    _, expected = graph_gradients(pair, batch, ALL)
    caplog.set_level(logging.INFO, "vembed")
    trainer = trainer_of(pair, 3)
    for _ in range(2):
        trainer.step(batch)
    assert_gradients_equal(take_gradients(pair.model.named_parameters()), {k: 2 * v for k, v in expected.items()})
    assert caplog.text.count("train_batch_norm: true needs use_gradient_cache: false") == told


@pytest.mark.parametrize("retain", [0.0, 0.5])
def test_a_tower_that_no_row_needs_gets_no_gradient(folders, retain):
    pair = load(folders, "clip")
    texts = [pair.processor.prepare([make_item("t", row) for row in range(7)], side) for side in ("query", "document")]
    batch = Batch(*texts, make_targets([[row] for row in range(7)], 7))
    _, expected = graph_gradients(pair, batch, ALL)
    _, gradients = step_gradients(pair, batch, 2, retain)
    assert_gradients_equal(gradients, expected)
    assert not any("vision" in name for name in gradients)


@pytest.mark.parametrize("retain", [0.0, 0.5])
def test_a_scaler_of_float16_gives_the_plain_gradient_and_skips_what_overflows(folders, retain):
    pair = load(folders, "clip")
    pair.model.float()
    batch = make_batch(pair)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(pair.model.parameters(), lr=0.1)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.float16)

    def unscaled(chunk_size: int | None) -> dict[str, Tensor]:
        trainer_of(pair, chunk_size, retain, autocast=autocast).step(batch, loss_scale=scaler.scale)
        scaler.unscale_(optimizer)
        scaler.update(2.0**12)  # forgets that it has unscaled
        return take_gradients(pair.model.named_parameters())

    trainer_of(pair, None).step(batch)
    exact = take_gradients(pair.model.named_parameters())
    error = relative_difference(unscaled(None), exact)
    assert 1e-5 < error < 0.01
    assert relative_difference(unscaled(3), exact) < 1.5 * error

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [parameter.clone() for parameter in pair.model.parameters()]
    trainer_of(pair, 3, retain, autocast=autocast).step(batch, loss_scale=scaler.scale)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    assert all(map(torch.equal, before, pair.model.parameters()))


def in_rows(side_items: list[Item], side: Side) -> ItemRows:
    """Rows whose pictures are decoded and changed at random, the same way each time, whenever their chunk is run."""
    changes = [image_transform("strong", 0, 0, row=row, slot=0) for row in range(len(side_items))]
    items = zip(side_items, changes, strict=True)
    return ItemRows(tuple(EncodedItem(item, content_hash(item), 1, change) for item, change in items), side)


@pytest.mark.parametrize("retain", [0.0, 0.5])
@pytest.mark.parametrize("family", ["clip", "bert", "dinov2", "composed"])
def test_chunks_of_tokens_replay_dropout_and_augmentation(folders, family, retain):
    pair = load(folders, family)
    pair.model.train()
    kinds = {("text",): "t" * 7, ("vision",): "i" * 7}.get(pair.spec.towers, MIXED)
    queries = in_rows([make_item(kinds[row % 7], row) for row in range(7)], "query")
    documents = in_rows([make_item(kinds[row % 7], 100 + row) for row in range(11)], "document")
    batch = replace(make_batch(pair), queries=queries, documents=documents)
    longest = max(pair.processor.count_tokens((*queries.items, *documents.items), "query"))
    settings = GradCacheSettings(gradient_cache_chunk_tokens=2 * longest, gradient_cache_retain=retain)
    partitions = chunk_batch(batch, pair.processor, Chunking(chunk_tokens=2 * longest))
    assert min(len(partition.rows) for partition in partitions) > 1

    def one_graph() -> tuple[float, dict[str, Tensor]]:
        sides = []
        for partition in partitions:
            prepared = [pair.processor.prepare(chunk.items, chunk.side) for chunk in partition.chunks]
            sides.append(
                partition.restore_order(concat_rows([pair.model(pair.processor.finish(inputs)) for inputs in prepared]))
            )
        scale, bias = pair.model.logit_scale, pair.model.logit_bias
        loss = objective_of(pair)(*sides, batch.targets, logit_scale=scale, logit_bias=bias)
        loss.backward()
        return loss.item(), take_gradients(pair.model.named_parameters())

    torch.manual_seed(1)
    expected_loss, expected = one_graph()
    assert abs(one_graph()[0] - expected_loss) > 1e-6, "dropout must be on for this test to say anything"
    torch.manual_seed(1)
    loss = GradientCacheTrainer(pair.model, pair.processor, objective_of(pair), settings).step(batch).loss
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_gradients_equal(take_gradients(pair.model.named_parameters()), expected)


def test_in_float32_the_gradients_are_equal_to_rounding(folders):
    pair = load(folders, "clip")
    pair.model.float()
    batch = make_batch(pair)
    _, expected = graph_gradients(pair, batch, ALL)
    for chunk_size in (1, 3, 7):
        for retain in (None, 0.4):
            assert_gradients_equal(step_gradients(pair, batch, chunk_size, retain)[1], expected)


def test_under_checkpointing_every_graph_that_fits_is_kept(folders):
    pair = load(folders, "clip", gradient_checkpointing=True)
    pair.model.train()
    batch = make_batch(pair)
    with counted_rows(pair.model) as seen:
        trainer = trainer_of(pair, 4)
        trainer.find_chunking(batch)
        seen.clear()
        trainer.step(batch)
        assert seen == [4, 3, 4, 4, 3]
        seen.clear()
        trainer_of(pair, 4, 0.0).step(batch)
        assert seen == [*[4, 3, 4, 4, 3], *[4, 4, 3, 4]]


def test_batches_accumulate_to_the_gradient_of_their_mean(folders):
    pair = load(folders, "clip")
    batch = make_batch(pair)
    other = replace(batch, queries=batch.documents, documents=batch.queries, targets=make_targets([[0]] * 11, 7))
    trainer = trainer_of(pair, 3)
    for part in (batch, other):
        trainer.step(part, loss_scale=0.5)
    accumulated = take_gradients(pair.model.named_parameters())
    parts = [graph_gradients(pair, part, ALL)[1] for part in (batch, other)]
    assert_gradients_equal(accumulated, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})


def test_a_scalers_scale_multiplies_the_gradient_alone(folders):
    pair = load(folders, "clip")
    batch = make_batch(pair)
    loss, expected = step_gradients(pair, batch, 3)
    assert trainer_of(pair, 3).step(batch, loss_scale=lambda value: value * 1024).loss == loss
    scaled = take_gradients(pair.model.named_parameters())
    assert_gradients_equal(scaled, {name: 1024 * gradient for name, gradient in expected.items()})


@pytest.mark.parametrize("chunk_size", [1, 3, 7, ALL])
def test_under_autocast_the_gradient_is_as_close_to_float32_as_the_plain_one(folders, chunk_size):
    pair = load(folders, "clip")
    pair.model.float()
    batch = make_batch(pair)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def gradients(size: int | None, context: Callable) -> dict[str, Tensor]:
        trainer_of(pair, size, autocast=context).step(batch)
        return take_gradients(pair.model.named_parameters())

    exact = gradients(None, nullcontext)
    error = relative_difference(gradients(None, autocast), exact)
    assert 1e-4 < error < 0.1
    assert relative_difference(gradients(chunk_size, autocast), exact) < 1.5 * error


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": ("text",)},
        {"freeze": ("vision",)},
        {"use_lora": True, "lora_r": 2, "lora_dropout": 0.3},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "use_lora": True, "lora_r": 2, "lora_dropout": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("retain", [0.0, 0.5, pytest.param(None, marks=pytest.mark.slow)])
def test_freezing_adapters_and_checkpointing_change_nothing(folders, settings, retain):
    pair = load(folders, "clip", **settings)
    pair.model.train()
    for name, parameter in pair.model.named_parameters():
        if ".lora_B" in name:  # starts at zero, which would leave lora_A without gradient
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    batch = make_batch(pair)
    torch.manual_seed(1)
    _, expected = graph_gradients(pair, batch, 3)
    torch.manual_seed(1)
    _, gradients = step_gradients(pair, batch, 3, retain)
    assert len(gradients) == len([p for p in pair.model.parameters() if p.requires_grad])
    assert_gradients_equal(gradients, expected)


@pytest.mark.parametrize("adapters", [{}, {"use_lora": True, "lora_r": 2, "lora_dropout": 0.3}], ids=["", "adapters"])
@pytest.mark.parametrize("family", ["clip", SIGLIP, "bert", "dinov2", "composed", "colbert"])
def test_the_step_has_the_gradient_of_one_graph_above_frozen_layers(folders, family, adapters):
    towers = {"bert": ("text",), "colbert": ("text",), "dinov2": ("vision",)}.get(family, ("text", "vision"))
    pair = load(folders, family, freeze_layers=dict.fromkeys(towers, 1), **adapters)
    for name, parameter in pair.model.named_parameters():
        if ".lora_B" in name:  # starts at zero, which would leave lora_A without gradient
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    loss, expected = graph_gradients(pair, make_batch(pair), ALL)
    cached_loss, gradients = step_gradients(pair, make_batch(pair, prepared=False), 3)
    assert cached_loss == pytest.approx(loss)
    assert_gradients_equal(gradients, expected)
    pair.model.train()
    torch.manual_seed(1)
    _, with_dropout = graph_gradients(pair, make_batch(pair), 3)
    torch.manual_seed(1)
    _, gradients = step_gradients(pair, make_batch(pair), 3)
    assert_gradients_equal(gradients, with_dropout)
    assert relative_difference(gradients, expected) > 1e-3, "dropout must be on for this test to say anything"


def test_a_frozen_encoder_of_token_vectors_runs_once_per_chunk_within_its_memory(folders):
    pair = load(folders, "colbert", freeze=("text",))
    pair.model.train()
    _, expected = graph_gradients(pair, make_batch(pair), ALL)
    assert expected.keys() == {"logit_scale", "heads.0.linear.weight"}
    batch = make_batch(pair, prepared=False)
    runs = []
    for limit in (1.0, 1e-9, 0.0):  # all, one chunk, none
        settings = GradCacheSettings(
            gradient_cache_chunk_size=3, gradient_cache_retain=0.0, gradient_cache_states_gib=limit
        )
        trainer = GradientCacheTrainer(pair.model, pair.processor, objective_of(pair), settings)
        seen = []
        hook = pair.model.backbone.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        trainer.step(batch)
        hook.remove()
        runs.append(len(seen))
        assert_gradients_equal(take_gradients(pair.model.named_parameters()), expected)
    num_chunks = sum(len(side.rows) for side in chunk_batch(batch, pair.processor, Chunking(chunk_size=3)))
    assert runs[0] == num_chunks
    assert runs[1] == runs[2] - 1
    assert runs[2] == 2 * num_chunks - 1  # the last chunk keeps its graph


def test_a_frozen_tower_runs_once_per_chunk_of_rows_that_are_prepared_too(folders):
    pair = load(folders, "clip", freeze=("vision",))
    batch = make_batch(pair)
    _, expected = graph_gradients(pair, batch, ALL)
    with counted_rows(pair.model.towers()["vision"]) as seen:
        _, gradients = step_gradients(pair, batch, 3)
    assert sum(seen) == sum(len(side.tensors["pixel_values"].values) for side in (batch.queries, batch.documents))
    assert_gradients_equal(gradients, expected)


def test_one_chunk_is_one_forward_per_side_and_several_are_two_each_but_those_that_keep_their_graphs(folders):
    pair = load(folders, "clip")
    batch = make_batch(pair)
    with counted_rows(pair.model) as seen:
        for chunk_size in (None, 11, ALL):
            trainer_of(pair, chunk_size).step(batch)
            assert seen == [7, 11]
            seen.clear()
        trainer_of(pair, 4).step(batch)
        assert seen == [*[4, 3, 4, 4, 3], *[4, 4, 3, 4]]
        seen.clear()
        trainer_of(pair, 4, 0.6).step(batch)
    assert seen == [*[4, 3, 4, 4, 3], *[3, 4]]


def test_a_tower_is_not_run_for_a_chunk_without_its_kind(folders):
    pair = load(folders, "clip")
    batch = make_batch(pair)
    texts_only = replace(batch, queries=pair.processor.prepare([make_item("t", row) for row in range(7)], "query"))
    towers = pair.model.towers()
    with counted_rows(towers["vision"]) as images, counted_rows(towers["text"]) as texts:
        trainer_of(pair, 1).step(texts_only)
    kinds = MIXED[::-1] + MIXED[::-1][:4]  # of the documents, the last of which keeps its graph
    assert kinds[-1] == "t"
    assert len(images) == 2 * sum(kind != "t" for kind in kinds)
    assert len(texts) == 2 * (7 + sum(kind != "i" for kind in kinds)) - 1
    assert set(images) == set(texts) == {1}


def test_float_pixels_exist_for_one_chunk_only(folders):
    pair = load(folders, "clip")
    batch = make_batch(pair)
    assert batch.documents.tensors["pixel_values"].values.dtype == torch.uint8
    with counted_rows(pair.model) as rows:
        trainer_of(pair, 2).step(batch)
    assert max(rows) == 2
    assert batch.documents.tensors["pixel_values"].values.dtype == torch.uint8


def test_the_result_tells_loss_counts_and_scale(folders):
    pair = load(folders, "siglip")
    set_temperature(pair.model, 0.04)
    batch = make_batch(pair)
    result = trainer_of(pair, 3).step(batch)
    assert (result.num_queries, result.num_documents) == (NUM_QUERIES, NUM_DOCUMENTS)
    assert result.scale == pytest.approx(25)
    assert result.loss == pytest.approx(graph_gradients(pair, batch, ALL)[0])


@pytest.mark.parametrize("chunk_size", [3, ALL])
def test_a_loss_that_is_not_finite_names_its_rows_and_adds_no_gradient(folders, chunk_size):
    """A character that the tokenizer does not know, whose vector is NaN: in query 5, and in a negative of query 2."""
    pair = load(folders, "bert")
    unknown = pair.processor.prepare([Item(text="漢")], "query").tensors["input_ids"].values[0, 1]
    pair.model.text_tower.model.embeddings.word_embeddings.weight.data[unknown] = math.nan
    batch = make_batch(pair)
    trainer_of(pair, chunk_size).step(batch)  # finite
    take_gradients(pair.model.named_parameters())
    queries, documents = ([make_item("t", row) for row in range(count)] for count in (NUM_QUERIES, NUM_DOCUMENTS))
    queries[4] = documents[8] = Item(text="漢")
    prepare = pair.processor.prepare
    spoiled = replace(batch, queries=prepare(queries, "query"), documents=prepare(documents, "document"))
    where = r" \(chunk 2 of 3 of the queries, chunk 3 of 4 of the documents\)" if chunk_size == 3 else ""
    broken = r"; the model's weights are not finite either, such as .*word_embeddings\.weight"
    with pytest.raises(VembedError, match=rf"embeddings of train\.jsonl:2, train\.jsonl:5 are not{where}{broken}"):
        trainer_of(pair, chunk_size).step(spoiled)
    assert take_gradients(pair.model.named_parameters()) == {}


def test_a_broken_temperature_is_told_apart_from_broken_rows(folders):
    pair = load(folders, "clip")
    pair.model.logit_scale.data.fill_(math.nan)
    with pytest.raises(VembedError, match="though all embeddings are"):
        trainer_of(pair, 3).step(make_batch(pair))
