"""The training step of vision-language models with a frozen vision tower: it looks at each picture once."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.gradients import assert_gradients_equal, relative_difference, take_gradients
from tests.pictures import make_picture, write_pairs
from tests.runs import read_lines
from tests.targets import make_targets
from vembed import Trainer
from vembed.data.hashing import content_hash
from vembed.errors import ConfigError
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.settings import LossSettings
from vembed.model.backbones.vision_states import SplitAtVision
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import get_scorer
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.step.chunking import Chunking
from vembed.types import Batch, EncodedItem, ImageSource, Item, ItemRows
from vembed.utils.memory import GIB

LORA = {"use_lora": True, "lora_r": 2, "lora_dropout": 0.3}
MODELS = {
    "qwen2_vl": tiny.tiny_qwen2_vl,
    "qwen3_vl": tiny.tiny_qwen3_vl,
    "smolvlm": tiny.tiny_smolvlm,
    "colqwen2": tiny.tiny_colqwen2,
    "colqwen": tiny.tiny_qwen2_vl,
}
SETTINGS = {"colqwen": {"encoder_mode": "colqwen", "projection_dim": 16, "num_query_tokens": 8}}
NUM_ROWS = 6


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a tiny model in float64 and training mode, adapters away from zero."""

    def opened(name: str, **settings: object) -> VisualRetrievalModel:
        folder = MODELS[name](tmp_path_factory.mktemp(name))
        pair = VisualRetrievalModel.from_pretrained(folder, ModelSettings(**SETTINGS.get(name, {}), **settings))
        pair.model.double().train()
        for key, parameter in pair.model.named_parameters():
            if ".lora_B" in key:  # starts at zero, which would leave lora_A without gradient
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(key)))
        return pair

    return opened


def make_batch(pair: VisualRetrievalModel, *, encoded: bool = False) -> Batch:
    """Queries: texts, one with a picture. Documents: pictures, a text, and two pictures, one of them seen before."""
    pictures = [ImageSource(pil=make_picture(seed, (30 + 9 * seed, 40))) for seed in range(7)]
    queries = [Item(text=f"a picture of {'very ' * row}many {row}") for row in range(NUM_ROWS - 1)]
    queries.append(Item(text="like this", images=(pictures[6],)))
    documents = [Item(images=(one,)) for one in pictures[:4]]
    documents += [Item(text="a text"), Item(images=(pictures[4], pictures[0]))]

    def rows(items, side):
        load = (lambda item: EncodedItem(item, content_hash(item))) if encoded else pair.processor.load
        return ItemRows(tuple(map(load, items)), side)

    return Batch(rows(queries, "query"), rows(documents, "document"), make_targets([[row] for row in range(6)], 6))


def trainer_of(pair: VisualRetrievalModel, chunk_size: int | None, limit: float = 1.0, **keys: object):
    settings = GradCacheSettings(
        use_gradient_cache=chunk_size is not None,
        gradient_cache_chunk_size=chunk_size or 1,
        gradient_cache_states_gib=limit,
        gradient_cache_retain=0.0,
        **keys,
    )
    objective = LossFactory.create(LossSettings(), scorer=get_scorer(pair.spec.similarity, pair.spec.scoring))
    return GradientCacheTrainer(pair.model, pair.processor, objective, settings)


def gradients(pair, batch, chunk_size, limit: float = 1.0) -> dict[str, Tensor]:
    torch.manual_seed(1)
    trainer_of(pair, chunk_size, limit).step(batch)
    return take_gradients(pair.model.named_parameters())


@contextmanager
def counted(pair: VisualRetrievalModel) -> Iterator[list[int]]:
    """On how many patches the vision tower's first layer of weights is run, each time."""
    seen: list[int] = []
    tower = pair.model.towers()["vision"]
    first = next(module for module in tower.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    hook = first.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


WAYS = {"frozen": {"freeze": ("vision",)}, "adapters": LORA}
QUICK = [("qwen3_vl", "frozen"), ("qwen3_vl", "adapters"), ("smolvlm", "frozen"), ("colqwen2", "adapters")]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in QUICK else pytest.mark.slow)
        for name in MODELS
        for way in WAYS
    ],
)
def test_pictures_are_looked_at_once_and_nothing_changes(load, name, way):
    pair = load(name, **WAYS[way])
    assert pair.model.freezing.towers == {"vision"}
    batch = make_batch(pair)
    pair.model.eval()  # dropout draws other masks for chunks than for a whole batch
    expected = gradients(pair, batch, None)
    assert_gradients_equal(gradients(pair, batch, 2), expected)
    pair.model.train()
    expected = gradients(pair, batch, 2, limit=0.0)
    gradients(pair, batch, 2)  # whether the model can be cut is tried
    with counted(pair) as seen:
        gradients(pair, batch, None)
        once = sum(seen)
        seen.clear()
        again = gradients(pair, batch, 2)
        assert (sum(seen), len(seen)) == (once, 4)  # chunks with pictures
        seen.clear()
        assert_gradients_equal(gradients(pair, batch, 2, limit=0.0), expected)
        assert once < sum(seen) < 2 * once
    assert_gradients_equal(again, expected)


@pytest.mark.parametrize("name", ["qwen3_vl", "colqwen2"])
def test_other_tokens_of_pictures_would_be_seen(load, name, monkeypatch):
    pair = load(name, **LORA)
    batch = make_batch(pair)
    expected = gradients(pair, batch, 2)
    give = SplitAtVision._tokens
    monkeypatch.setattr(SplitAtVision, "_tokens", lambda cut, states: give(cut, states.roll(1, dims=0)))
    assert relative_difference(gradients(pair, batch, 2), expected) > 1e-3


def test_memory_for_states_is_kept_to(load):
    pair = load("qwen2_vl", freeze=("vision",))
    batch = make_batch(pair)
    gradients(pair, batch, 1)  # whether the model can be cut is tried
    expected = gradients(pair, batch, 1)
    with counted(pair) as seen:
        gradients(pair, batch, 1, limit=0.0)
        twice = sum(seen)
        seen.clear()
        # room for one picture: whatever is kept first is over it
        assert_gradients_equal(gradients(pair, batch, 1, limit=1e-9), expected)
        some = sum(seen)
        seen.clear()
        gradients(pair, batch, 1)
        assert sum(seen) < some < twice


def test_nothing_is_kept_of_chunks_that_keep_their_graphs(load, monkeypatch):
    pair = load("qwen2_vl", freeze=("vision",))
    batch = make_batch(pair)
    expected = gradients(pair, batch, 2)
    taken = []
    take = SplitAtVision._taken
    monkeypatch.setattr(SplitAtVision, "_taken", lambda *arguments: taken.append(1) or take(*arguments))
    trainer = trainer_of(pair, 2)
    for retain, num_taken in ((0.0, 3), (0.5, 1), (1.0, 0)):  # of six chunks the last four hold pictures
        chunking = replace(trainer.find_chunking(batch), retain=retain)
        torch.manual_seed(1)
        with counted(pair) as seen:
            trainer.with_chunking(chunking, autocast=nullcontext).step(batch)
        assert (len(taken), len(seen)) == (num_taken, 4)
        assert_gradients_equal(take_gradients(pair.model.named_parameters()), expected)
        taken.clear()


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["", "checkpointing"])
def test_pictures_held_as_files_and_chunks_of_tokens_are_kept_too(load, settings):
    pair = load("qwen3_vl", freeze=("vision",), **settings)
    pair.model.eval()
    expected = gradients(pair, make_batch(pair), None)
    batch = make_batch(pair, encoded=True)
    assert_gradients_equal(gradients(pair, batch, 2), expected)
    chunking = Chunking(chunk_tokens=60, max_hidden_state_bytes=GIB)
    trainer = trainer_of(pair, 1).with_chunking(chunking, autocast=nullcontext)
    gradients(pair, batch, 2)
    with counted(pair) as seen:
        result = trainer.step(batch)
    assert result.num_documents == NUM_ROWS
    assert_gradients_equal(take_gradients(pair.model.named_parameters()), expected)
    assert sum(seen) > 0
    with counted(pair) as once:
        gradients(pair, batch, None)
    assert sum(seen) == sum(once)


def test_prepared_inputs_have_the_same_gradient(load):
    pair = load("qwen2_vl", freeze=("vision",))
    batch = make_batch(pair)
    prepare = pair.processor.prepare
    prepared = replace(
        batch, queries=prepare(batch.queries.items, "query"), documents=prepare(batch.documents.items, "document")
    )
    assert_gradients_equal(gradients(pair, prepared, 2), gradients(pair, batch, 2))


@pytest.fixture
def run_settings(tmp_path):
    return {
        "model_name": tiny.tiny_qwen2_vl(tmp_path / "model"),
        "data_path": str(write_pairs(tmp_path / "rows", 8)),
        "retrieval_mode": "t2i",
        "batch_size": 4,
        "gradient_cache_chunk_size": 2,
        "gradient_cache_retain": 0,
        "max_steps": 2,
        "report": False,
        "use_lora": True,
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
    }


def test_a_run_says_what_is_frozen_and_what_is_kept(run_settings):
    overview = Trainer(run_settings).overview()
    assert "frozen        vision" in overview.lines()
    assert overview.memory.parts["frozen towers' output"] > 0
    limited = Trainer({**run_settings, "gradient_cache_states_gib": 0}).overview()
    assert limited.memory.parts["frozen towers' output"] == 0
    with pytest.raises(ConfigError, match=r"gradient_cache_states_gib: 0\.5 has no effect"):
        Trainer({**run_settings, "lora_target_modules": ["qkv"], "gradient_cache_states_gib": 0.5}).overview()


def test_what_is_kept_within_a_step_alone_is_not_kept_between_them(run_settings):
    settings = {**run_settings, "use_lora": False, "freeze": ["vision"], "cache_frozen_features": True}
    with pytest.raises(ConfigError, match="cache_frozen_features: of a vlm_generic model, what is frozen is kept with"):
        Trainer(settings).overview()


def test_a_run_has_the_same_numbers_whatever_is_kept(run_settings, tmp_path):
    losses = []
    for limit in (1.0, 0.0):
        folder = tmp_path / f"run-{limit}"
        Trainer({**run_settings, "gradient_cache_states_gib": limit, "output_dir": str(folder)}).train()
        losses.append(read_lines(folder / "metrics.jsonl"))
    assert losses[0]
    assert losses[0] == losses[1]
