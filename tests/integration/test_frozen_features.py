"""Training with frozen towers: each is run once per item, and the run is the one without a cache."""

import pytest
from safetensors.torch import load_file

from tests.runs import read_lines, two_data_sets
from vembed.errors import ConfigError
from vembed.model.backbones.composed import ComposedModel
from vembed.model.processors.auto import TowerProcessor
from vembed.trainer import Trainer
from vembed.types import Item


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_data_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(tmp_path, bert_folder, timm_folder, data):
    """Six steps over 24 rows: 14 texts and 14 + 10 + 10 + 10 pictures."""
    return {
        "text_model_name": bert_folder,
        "image_model_name": timm_folder,
        "freeze": ["text", "vision"],
        "data_path": data,
        "val_fraction": 0.2,
        "batch_size": 8,
        "epochs": 2,
        "logging_steps": 1,
        "gradient_cache_chunk_size": 3,
        "feature_cache_dir": str(tmp_path / "features"),
        "cache_frozen_features": True,
        "device": "cpu",
    }


@pytest.fixture
def slices(monkeypatch):
    """Counts what the towers are run on."""
    counts = {"texts": 0, "pictures": 0}

    def count(name, method):
        def counted(self, first, *others):
            counts[name] += len(first) if name == "texts" else len(first["pixel_values"])
            return method(self, first, *others)

        return counted

    monkeypatch.setattr(ComposedModel, "embed_text", count("texts", ComposedModel.embed_text))
    monkeypatch.setattr(ComposedModel, "embed_images", count("pictures", ComposedModel.embed_images))
    return counts


def without_cache(settings):
    return {key: value for key, value in settings.items() if "feature" not in key}


def losses(run):
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def test_the_run_is_the_same_and_runs_every_tower_once_per_item(tmp_path, settings, slices):
    plain = Trainer({**without_cache(settings), "output_dir": str(tmp_path / "plain")}).train()
    slices.update(texts=0, pictures=0)
    cached = Trainer({**settings, "output_dir": str(tmp_path / "cached")}).train()
    assert slices == {"texts": 14, "pictures": 44}  # training, validations, and both models of the report
    assert losses(cached.output_dir) == pytest.approx(losses(plain.output_dir), rel=1e-4)
    for label, sets in plain.metrics.items():
        for name, figures in sets.items():
            assert cached.metrics[label][name] == pytest.approx(figures, abs=1e-6)
    expected = load_file(plain.final / "vembed_heads.safetensors")
    for name, tensor in load_file(cached.final / "vembed_heads.safetensors").items():
        assert (tensor - expected[name]).norm() < 1e-2 * expected[name].norm()


def test_a_second_run_and_one_that_goes_on_compute_nothing(tmp_path, settings, slices):
    settings |= {"report": False, "lr_scheduler": "constant", "warmup_ratio": 0, "save_steps": 2}
    straight = Trainer({**settings, "output_dir": str(tmp_path / "straight")}).train()
    slices.update(texts=0, pictures=0)
    parts = {**settings, "output_dir": str(tmp_path / "parts")}
    Trainer({**parts, "max_steps": 2}).train()
    resumed = Trainer({**parts, "resume_from_checkpoint": "latest"}).train()
    assert slices == {"texts": 0, "pictures": 0}
    assert losses(resumed.output_dir) == losses(straight.output_dir)
    expected, tensors = (
        load_file(result.output_dir / "checkpoint-6" / "vembed_heads.safetensors") for result in (straight, resumed)
    )
    assert all(tensors[name].equal(expected[name]) for name in expected)


def test_only_the_frozen_tower_is_kept(tmp_path, settings, slices):
    settings |= {"freeze": ["vision"], "output_dir": str(tmp_path / "run"), "report": False}
    Trainer(settings).train()
    assert slices["pictures"] == 44
    assert slices["texts"] > 2 * 14
    assert [path.name.split("-")[0] for path in (tmp_path / "features").iterdir()] == ["vision"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"freeze": []},
            r"cache_frozen_features: no tower is frozen, and it keeps .* whole .*; set freeze: \[vision\]",
        ),
        (
            {"freeze": [], "freeze_layers": {"text": 1}},
            r"cache_frozen_features: freeze_layers freezes first layers alone, and it keeps .* whole .*; set freeze",
        ),
        ({"augment": "light"}, "cache_frozen_features: augment: light changes pictures anew"),
        ({"cache_frozen_features": False}, "feature_cache_dir: has an effect only with cache_frozen_features: true"),
    ],
)
def test_what_has_no_features_to_keep_is_refused(tmp_path, settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        Trainer({**settings, **changes, "output_dir": str(tmp_path / "run")}).overview()


def test_a_dual_encoder_keeps_its_frozen_texts_and_changes_its_pictures(tmp_path, settings, siglip_folder):
    settings = {key: value for key, value in settings.items() if not key.endswith("_model_name")}
    settings |= {"model_name": siglip_folder, "freeze": ["text"], "augment": "strong"}
    Trainer({**settings, "output_dir": str(tmp_path / "run"), "report": False, "max_steps": 1}).train()
    assert [path.name.split("-")[0] for path in (tmp_path / "features").iterdir()] == ["text"]


@pytest.mark.parametrize("frozen", [["vision"], ["text"], ["text", "vision"]])
def test_a_step_runs_a_frozen_tower_once_per_row_and_has_the_plain_gradient(
    tmp_path, settings, slices, frozen, monkeypatch
):
    """All chunks but the last are encoded twice; what is frozen is not."""
    read = []
    prepare = TowerProcessor.prepare
    monkeypatch.setattr(
        TowerProcessor, "prepare", lambda self, items, side: read.append(list(items)) or prepare(self, items, side)
    )
    settings = {**without_cache(settings), "freeze": frozen, "report": False, "val_fraction": 0, "epochs": 1}
    settings |= {"output_dir": str(tmp_path / "cached"), "learning_rate": 1e-4}
    cached = Trainer(settings).train()
    counts = dict(slices)
    of_batches = [
        item for items in read for item in items if not isinstance(item, Item)
    ]  # opening a model tries an Item
    decoded = sum(len(item.images) for item in of_batches)
    slices.update(texts=0, pictures=0)
    del settings["gradient_cache_chunk_size"]
    plain = Trainer({**settings, "use_gradient_cache": False, "output_dir": str(tmp_path / "plain")}).train()
    for tower, name in (("text", "texts"), ("vision", "pictures")):
        assert counts[name] == slices[name] if tower in frozen else counts[name] > slices[name]
    assert decoded == counts["pictures"]
    if "text" not in frozen:
        return  # whose dropout falls otherwise in other chunks
    assert losses(cached.output_dir) == pytest.approx(losses(plain.output_dir), rel=1e-4)
    expected = load_file(plain.final / "vembed_heads.safetensors")
    for name, tensor in load_file(cached.final / "vembed_heads.safetensors").items():
        assert (tensor - expected[name]).norm() < 1e-2 * expected[name].norm()
