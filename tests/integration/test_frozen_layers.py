"""Training with frozen first layers: they stay as they are to the bit, the others learn, and a run goes on exactly."""

import pytest
from safetensors.torch import load_file

from tests.runs import read_bytes, read_lines, two_data_sets
from vembed.errors import ConfigError
from vembed.trainer import Trainer


@pytest.fixture(scope="module")
def settings(tmp_path_factory, bert_folder, vit_folder):
    """Four steps with dropout, augmentation and several chunks."""
    return {
        "text_model_name": bert_folder,
        "image_model_name": vit_folder,
        "freeze_layers": {"text": 1, "vision": 1},
        "data_path": two_data_sets(tmp_path_factory.mktemp("data")),
        "val_fraction": 0,
        "augment": "light",
        "batch_size": 8,
        "gradient_cache_chunk_size": 3,
        "max_steps": 4,
        "epochs": 9,
        "logging_steps": 1,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "report": False,
        "device": "cpu",
    }


def weights_of(folder):
    files = {tower: load_file(folder / tower / "model.safetensors") for tower in ("text", "image")}
    return {f"{tower}.{name}": tensor for tower, file in files.items() for name, tensor in file.items()}


def test_frozen_layers_stay_as_they_are_and_the_others_learn(tmp_path, settings, bert_folder, vit_folder):
    final = weights_of(Trainer({**settings, "output_dir": str(tmp_path / "run")}).train().final)
    base = {f"text.{name}": tensor for name, tensor in load_file(f"{bert_folder}/model.safetensors").items()}
    base |= {f"image.{name}": tensor for name, tensor in load_file(f"{vit_folder}/model.safetensors").items()}
    assert final.keys() <= base.keys()
    changed = {name for name, tensor in final.items() if not tensor.equal(base[name])}
    frozen = {name for name in final if "embeddings." in name or ".layer.0." in name or ".layers.0." in name}
    assert len(frozen) > 30
    assert not changed & frozen
    assert len(changed) > 30
    unchanged = {name for name in final.keys() - frozen - changed if "pooler" not in name}
    assert unchanged == set()


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapters"])
def test_four_steps_are_two_and_a_restart_and_two(tmp_path, settings, lora):
    settings = {**settings, "use_lora": lora, "lr_scheduler": "constant", "warmup_ratio": 0}
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    Trainer({**settings, "output_dir": str(straight)}).train()
    Trainer({**settings, "output_dir": str(parts), "max_steps": 2}).train()
    Trainer({**settings, "output_dir": str(parts), "resume_from_checkpoint": "latest"}).train()
    assert read_lines(parts / "metrics.jsonl") == read_lines(straight / "metrics.jsonl")
    for folder in ("checkpoint-4", "final"):
        files, expected = (
            {name: content for name, content in read_bytes(run / folder).items() if name.endswith(".safetensors")}
            for run in (parts, straight)
        )
        assert len(expected) >= 3
        assert files == expected


def test_the_overview_says_what_is_frozen(tmp_path, settings):
    settings = {**settings, "output_dir": str(tmp_path / "run")}
    overview = Trainer(settings).overview()
    lines = overview.lines()
    assert not [line for line in lines if line.startswith("frozen   ")]
    towers = Trainer({**settings, "freeze": ["text"], "freeze_layers": {}}).overview()
    assert "frozen        text" in towers.lines()
    assert overview.memory.parts["frozen towers' output"] == 0
    with pytest.raises(ConfigError, match="gradient_cache_states_gib: has an effect only with a frozen tower"):
        Trainer({**settings, "gradient_cache_states_gib": 0}).overview()
    assert "frozen below  text: embeddings and 1 of 2 layers; vision: embeddings and 1 of 2 layers" in lines
