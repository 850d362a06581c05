"""What holds of every family: rows are independent, gradients exact, checkpoints give back the same embeddings."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import sentence_transformers
import torch
import transformers
from torch import Tensor, nn

from tests.cases import CASES, quick_and_slow
from tests.cases.case import Case
from tests.gradients import assert_gradients_equal, relative_difference, take_gradients
from vembed import Predictor
from vembed.data.hashing import content_hash
from vembed.errors import ModelError
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.settings import LossSettings
from vembed.model.detect import detect
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import get_scorer
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.types import Batch, Embeddings, EncodedItem, ImageSource, Inputs, Item, ItemRows, Ragged, Side, Targets

EVERY = list(CASES)
KINDS = ["text", "image", "mixed"]
READING = [
    (kind, name)
    for kind in KINDS
    for name, case in CASES.items()
    if (case.text or kind == "image") and (case.image or kind == "text") and (case.mixed or kind != "mixed")
]


def embed(model: VisualRetrievalModel, items: list[Item], side: str = "document") -> Embeddings:
    inputs = model.processor.prepare(items, side)
    with torch.no_grad():
        return model.model(model.processor.finish(inputs))


def rows_of(embeddings: Embeddings) -> list[Tensor]:
    """The real vectors of each row, [dim] or [tokens, dim]."""
    vectors, mask = embeddings.vectors, embeddings.mask
    return list(vectors) if mask is None else [row[real] for row, real in zip(vectors, mask, strict=True)]


def assert_same_rows(ours: list[Tensor], others: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(others)
    for number, (row, other) in enumerate(zip(ours, others, strict=True)):
        assert row.shape == other.shape, number
        assert torch.allclose(row, other, atol=tolerance), (number, float((row - other).abs().max()))


def shake(model: VisualRetrievalModel, seed: int = 0) -> VisualRetrievalModel:
    """Change every weight a little, as training does: all but the vector of the padding token, which never learns."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
        for module in model.model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # as some of transformers' models do whenever they are loaded
    return model


def pairs(kind: str, texts: list[str], pictures: list[object], num_rows: int = 5) -> tuple[list[Item], list[Item]]:
    """Queries and documents: texts, images, or rows of every kind (text, image, both, several images)."""
    sources = [ImageSource(pil=picture) for picture in pictures]
    words, images = [Item(text=text) for text in texts], [Item(images=(source,)) for source in sources]
    if kind == "text":
        return words[:num_rows], words[1:] + words[:1]
    if kind == "image":
        return images[:num_rows], images[1:] + images[:1]
    both = Item(text=texts[1], images=(sources[1],))
    queries = [words[0], both, images[2], words[3], Item(text=texts[4], images=(sources[4], sources[5]))]
    documents = [images[0], Item(images=(sources[1], sources[2])), words[2], both, images[4], words[5]]
    return queries[:num_rows], documents


def prepared(model: VisualRetrievalModel, items: list[Item], side: Side) -> Inputs:
    """All rows at once, padded to the longest."""
    return model.processor.prepare(items, side)


def loaded(model: VisualRetrievalModel, items: list[Item], side: Side) -> ItemRows:
    """Rows that are prepared chunk by chunk, their pixels held."""
    return ItemRows(tuple(model.processor.load(item) for item in items), side)


def encoded(model: VisualRetrievalModel, items: list[Item], side: Side) -> ItemRows:
    """Rows whose pictures are decoded again in each pass of their chunk."""
    return ItemRows(tuple(EncodedItem(item, content_hash(item)) for item in items), side)


def batch_of(
    model: VisualRetrievalModel,
    kind: str,
    texts: list[str],
    pictures: list[object],
    hold: Callable[..., Inputs | ItemRows] = prepared,
) -> Batch:
    """Each query's document has its own number; the last document belongs to none."""
    queries, documents = pairs(kind, texts, pictures)
    return Batch(
        queries=hold(model, queries, "query"),
        documents=hold(model, documents, "document"),
        targets=Targets(
            query_groups=torch.full((len(queries),), -1),
            query_hashes=torch.arange(len(queries)),
            document_groups=torch.full((len(documents),), -1),
            document_hashes=100 + torch.arange(len(documents)),
            positives=Ragged(torch.arange(len(queries)), torch.ones(len(queries), dtype=torch.int64)),
            negatives=Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(len(queries), dtype=torch.int64)),
        ),
    )


def trainer_for(
    model: VisualRetrievalModel,
    chunk_size: int | None,
    dtype: torch.dtype | None = None,
    *,
    chunk_tokens: int | None = None,
):
    spec = model.spec
    settings = GradCacheSettings(
        use_gradient_cache=bool(chunk_size or chunk_tokens),
        gradient_cache_chunk_size=chunk_size or 1,
        gradient_cache_chunk_tokens=chunk_tokens,
        gradient_cache_retain=0.5,  # some chunks keep their graphs, some are run again
    )
    objective = LossFactory.create(LossSettings(), scorer=get_scorer(spec.similarity, spec.scoring))

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    return GradientCacheTrainer(model.model, model.processor, objective, settings, autocast=autocast)


def gradients(
    model: VisualRetrievalModel, batch: Batch, chunk_size: int | None, chunk_tokens: int | None = None
) -> dict[str, Tensor]:
    """In eval mode: dropout draws other masks for chunks than for a whole batch, which is no difference of the step."""
    model.model.eval()
    trainer_for(model, chunk_size, chunk_tokens=chunk_tokens).step(batch)
    return take_gradients(model.model.named_parameters())


def variant(name: str, kind: str) -> dict[str, object]:
    """The settings of a way to train a case."""
    lora: dict[str, object] = {"use_lora": True}
    if CASES[name].lora_target_modules is not None:
        lora["lora_target_modules"] = CASES[name].lora_target_modules
    return {
        "plain": {},
        "bf16": {},
        "lora": lora,
        "checkpointing": {"gradient_checkpointing": True},
        "lora and checkpointing": {**lora, "gradient_checkpointing": True},
    }[kind]


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_the_family_is_recognised(name, folder_of, model_of):
    case = CASES[name]
    spec = model_of(name).spec
    assert (spec.family, spec.supports(["text"]), spec.supports(["image"])) == (case.family, case.text, case.image)
    if case.towers is None:
        detected = detect(folder_of(name), ModelSettings(**case.settings))
        assert detected.reason


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_an_embedding_does_not_depend_on_its_batch(name, model_of, items_for):
    model = model_of(name)
    items = items_for(model, CASES[name].mixed)
    together = rows_of(embed(model, items))
    alone = [rows_of(embed(model, [item]))[0] for item in items]
    backwards = rows_of(embed(model, items[::-1]))[::-1]
    assert_same_rows(together, alone, 1e-5)
    assert_same_rows(together, backwards, 1e-5)
    if model.spec.normalize:
        assert all(torch.allclose(row.norm(dim=-1), torch.ones(row.shape[:-1]), atol=1e-5) for row in together)
    first, second = together[0].reshape(-1, model.model.dim)[-1], together[1].reshape(-1, model.model.dim)[-1]
    assert (first - second).norm() > 1e-3, "all rows are alike: the comparison proves nothing"
    encoded = rows_of(model.encode(items, side="document", batch_size=3))
    assert_same_rows(encoded, together, 1e-5)


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_what_a_family_cannot_read_is_refused(name, model_of, pictures):
    case, model = CASES[name], model_of(name)
    image = ImageSource(pil=pictures[0])
    refused = [] if case.text else [Item(text="red")]
    refused += [] if case.image else [Item(images=(image,))]
    refused += [] if case.mixed else [Item(text="red", images=(image,))]
    for item in refused:
        with pytest.raises(ModelError, match="reads"):
            model.encode([item])


def quick_or_slow(kind: str, name: str):
    """Rows of both kinds stand for those of one, but for one model of two towers and one of a single network."""
    case = CASES[name]
    covered = kind != "mixed" and case.text and case.image and case.mixed and name not in ("clip", "qwen2_vl")
    return pytest.param(kind, name, marks=pytest.mark.slow if case.near or covered else ())


@pytest.mark.parametrize(("kind", "name"), [quick_or_slow(*pair) for pair in READING])
def test_cached_gradient_equals_plain_gradient(kind, name, fresh, texts, pictures):
    model = fresh(name)
    model.model.double()
    plain = gradients(model, batch_of(model, kind, texts, pictures), None)
    tolerance = None if CASES[name].exact else 1e-7
    in_rows = batch_of(model, kind, texts, pictures, loaded)
    assert_gradients_equal(gradients(model, in_rows, 2), plain, tolerance)
    by_tokens = batch_of(model, kind, texts, pictures, encoded)
    lengths = model.processor.count_tokens(by_tokens.documents.items, "document")
    assert len(set(lengths)) > 1 or kind == "image" or model.spec.pad_to is not None
    most = 2 * max(lengths)
    assert 2 * most < len(lengths) * max(lengths), "all rows would be one chunk"
    cached = gradients(model, by_tokens, None, most)
    assert_gradients_equal(cached, plain, tolerance)
    first = next(iter(cached))
    cached[first] = cached[first] + cached[first].norm() + 1
    assert relative_difference(cached, plain) > 1e-6, "the comparison cannot fail"


def ways(case: Case) -> list[str]:
    """Near relations of other cases are trained in full and with adapters alone, by whatever is hardest on each."""
    if case.near:
        return ["bf16", "lora and checkpointing" if case.checkpoints else "lora"]
    return ["plain", "bf16", "lora", "checkpointing", "lora and checkpointing"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), [(name, way) for name, case in CASES.items() for way in ways(case)])
def test_training_lowers_the_loss(name, way, fresh, texts, pictures):
    case = CASES[name]
    if "checkpointing" in way and not case.checkpoints:
        with pytest.raises(ModelError, match=r"gradient_checkpointing: the \w+ tower .* does not support it"):
            fresh(name, **variant(name, way))
        return
    model = fresh(name, **variant(name, way))
    kind = "mixed" if case.text and case.image and case.mixed else "text" if case.text else "image"
    batch = batch_of(model, kind, texts, pictures)
    trainer = trainer_for(model, 2, torch.bfloat16 if way == "bf16" else None)
    learning = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2 if "lora" in way else 2e-3, weight_decay=0.0)
    model.model.train()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        torch.manual_seed(0)
        losses.append(trainer.step(batch).loss)
        optimizer.step()
    assert losses[-1] < losses[0], losses


@dataclass(frozen=True)
class Saved:
    """A model whose every weight was changed, what it gave, and the folder it was saved in then."""

    model: VisualRetrievalModel
    items: list[Item]
    rows: Mapping[Side, list[Tensor]]
    folder: Path


@pytest.fixture(scope="session")
def saved(fresh, items_for, tmp_path_factory):
    """Changes, runs and saves a model once, by the name of its case; tests must not change it."""
    made: dict[str, Saved] = {}

    def save(name: str) -> Saved:
        if name not in made:
            model, folder = shake(fresh(name)), tmp_path_factory.mktemp(f"saved_{name}")
            items = items_for(model, CASES[name].mixed)
            sides: tuple[Side, ...] = ("query", "document")
            rows = {side: rows_of(model.encode(items, side=side)) for side in sides}
            model.save_pretrained(folder, {"loss": "infonce", "version": "ignored"})
            made[name] = Saved(model, items, rows, folder)
        return made[name]

    return save


@pytest.mark.parametrize("name", quick_and_slow(EVERY))
def test_a_reloaded_checkpoint_gives_the_same_embeddings(name, saved, folder_of):
    case = CASES[name]
    model, folder = saved(name).model, saved(name).folder
    predictor = Predictor(folder, "cpu", trust_remote_code=bool(case.settings.get("trust_remote_code")))
    assert predictor.spec == model.spec
    for side, ours in saved(name).rows.items():
        again = rows_of(predictor.model.encode(saved(name).items, side=side))
        assert all(torch.equal(row, other) for row, other in zip(ours, again, strict=True))
    states = model.model.state_dict(), predictor.model.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert not predictor.model.model.has_new_heads
    _check_files(folder, model)
    _check_transformers_class(folder, name, folder_of)


# Of a class that it does not know, transformers lists all that it knows: importing them takes seconds.
@pytest.mark.parametrize("name", quick_and_slow(EVERY, slow=("plain_llava",)))
def test_sentence_transformers_gives_equal_embeddings_or_none(name, saved, texts, pictures):
    """Where it cannot express the model, opening or embedding must fail: another vector would be a silent error."""
    case = CASES[name]
    model, folder = saved(name).model, saved(name).folder
    code = bool(case.settings.get("trust_remote_code"))
    kinds = [("text", texts)] * case.text + [("image", pictures)] * case.image
    if not case.opens_in_sentence_transformers:
        with pytest.raises((ValueError, ImportError, KeyError, AttributeError, RuntimeError, TypeError, OSError)):
            _open_elsewhere(folder, model, code).encode([kinds[0][1][0]])
        return
    opened = _open_elsewhere(folder, model, code)
    for kind, values in kinds:
        for side, encode in (("query", opened.encode_query), ("document", opened.encode_document)):
            items = [Item(text=one) if kind == "text" else Item(images=(ImageSource(pil=one),)) for one in values]
            ours = rows_of(model.encode(items, side=side))
            theirs = [torch.as_tensor(encode([one])[0]) for one in values]
            if case.rounds_pixels and kind == "image":
                cosines = [torch.cosine_similarity(*pair, dim=-1) for pair in zip(ours, theirs, strict=True)]
                assert min(float(cosine) for cosine in cosines) > 0.9999
            else:
                assert_same_rows(ours, theirs, 1e-5)


def _open_elsewhere(folder: Path, model: VisualRetrievalModel, code: bool):
    several = model.spec.scoring == "maxsim"
    library = sentence_transformers.MultiVectorEncoder if several else sentence_transformers.SentenceTransformer
    return library(str(folder), device="cpu", trust_remote_code=code)


def _check_files(folder: Path, model: VisualRetrievalModel) -> None:
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".jinja", ".model", ".py"}
    saved = json.loads((folder / "vembed_config.json").read_text())
    assert saved["loss"] == "infonce"
    assert saved["version"] != "ignored"
    assert saved["spec"]["family"] == model.spec.family
    for file in folder.rglob("tokenizer.json"):  # how long the last texts were is no part of a model
        tokenizer = json.loads(file.read_text())
        assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)


def _check_transformers_class(folder: Path, name: str, folder_of) -> None:
    """The folder opens in plain transformers as the class that the base opens as, with the same names of weights."""
    case = CASES[name]
    bases = (
        {"": folder_of(name)}
        if case.towers is None
        else dict(zip(("text", "image"), map(folder_of, case.towers), strict=True))
    )
    assert (folder / "config.json").exists() == (case.towers is None)
    for subfolder, base in bases.items():
        options = {"trust_remote_code": True} if case.settings.get("trust_remote_code") else {}
        loader = getattr(transformers, case.auto_class)
        opened, plain = (loader.from_pretrained(path, **options) for path in (folder / subfolder, base))
        assert type(opened).__name__ == type(plain).__name__
        assert opened.state_dict().keys() == plain.state_dict().keys()
