"""Losses over classes in whole runs: they learn, go on exactly, and deploy the model alone."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pictures import write_classes, write_jsonl
from tests.runs import finish, read_bytes, read_lines, start_training, wait_for
from vembed.errors import CheckpointError, ConfigError, DataError
from vembed.model.modeling import VisualRetrievalModel
from vembed.trainer import Trainer

LOSSES = {"arcface": {"sub_centres": 2, "class_scale": 16}, "proxy_anchor": {}}
NUM_CLASSES, DIM = 5, 20
STATE = "training_state.safetensors"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), NUM_CLASSES, 6)


@pytest.fixture
def settings(tmp_path, classes, vit_folder):
    """Ten steps over 30 rows in batches of 7, chunks of 4: step 5 ends an epoch, step 3 is in the midst of one."""
    return {
        "model_name": vit_folder,
        "data_path": classes,
        "retrieval_mode": "i2i",
        "output_dir": str(tmp_path / "run"),
        "val_fraction": 0,
        "batch_size": 7,
        "gradient_cache_chunk_size": 4,
        "learning_rate": 1e-3,
        "augment": "light",
        "epochs": 2,
        "save_steps": 3,
        "save_total_limit": 9,
        "logging_steps": 1,
        "report": False,
        "device": "cpu",
    }


@pytest.mark.parametrize("loss_type", ["arcface", pytest.param("proxy_anchor", marks=pytest.mark.slow)])
def test_a_model_learns_to_find_what_is_of_the_same_class(tmp_path, settings, loss_type, classes):
    longer = {
        "epochs": 12,
        "batch_size": 10,
        "gradient_cache_chunk_size": 10,
        "augment": "none",
        "save_steps": 100,
        "test_data_path": classes,
        "report": True,
    }
    result = Trainer({**settings, **longer, **LOSSES[loss_type], "loss_type": loss_type}).train()
    losses = [line["loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    before, after = (result.metrics[label]["i2i"]["map"] for label in ("base", "tuned"))
    assert after > before + 0.05


def class_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of the weights of classes."""
    return {name: value for name, value in load_file(checkpoint / STATE).items() if "classes/" in name}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_weights_of_classes_are_training_state_and_nothing_else(tmp_path, settings, loss_type):
    settings |= {"loss_type": loss_type, **LOSSES[loss_type], "val_fraction": 0.2, "eval_steps": 3}
    Trainer(settings).train(max_steps=6)
    run = tmp_path / "run"
    states = [class_state(run / f"checkpoint-{step}") for step in (3, 6)]
    per_class = LOSSES[loss_type].get("sub_centres", 1)
    num_classes = NUM_CLASSES - 2  # two of them were split off for validation: one could not be ranked
    for state in states:
        assert state.keys() == {
            *("classes/keys", "classes/weight", "optimizer/classes/weight/exp_avg"),
            *("optimizer/classes/weight/exp_avg_sq", "optimizer/classes/weight/step"),
        }
        assert state["classes/keys"].shape == (num_classes,)
        assert state["classes/weight"].shape == (num_classes * per_class, DIM)
    moved = (states[1]["classes/weight"] - states[0]["classes/weight"]).abs().max()
    assert moved > 1e-3
    steps = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert steps[0]["learning_rates"].keys() == {"vision", "classes"}
    folders = [run / "best", run / "final", run / "checkpoint-6"]
    files = [file for folder in folders for file in folder.rglob("*.safetensors") if file.name != STATE]
    assert len(files) >= 3
    for file in files:
        tensors = load_file(file)
        assert not [name for name in tensors if "class" in name]
        assert not [name for name, value in tensors.items() if value.shape == states[1]["classes/weight"].shape]
    assert not list(run.glob(f"final/**/{STATE}")) + list(run.glob(f"best/**/{STATE}"))
    assert VisualRetrievalModel.from_pretrained(str(run / "final")).model.state_dict().keys() == (
        VisualRetrievalModel.from_pretrained(settings["model_name"]).model.state_dict().keys()
    )


@pytest.mark.slow
def test_a_run_that_was_killed_within_an_epoch_goes_on_to_the_bit(tmp_path, settings):
    settings |= {"loss_type": "arcface", **LOSSES["arcface"]}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    Trainer({**settings, "output_dir": str(straight)}).train()
    process = start_training({**settings, "output_dir": str(killed)})
    wait_for(killed / "checkpoint-3" / "training_state.json", process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    for later in [
        path for path in killed.glob("*") if path.name in ("final", "checkpoint-6", "checkpoint-9", "checkpoint-10")
    ]:
        shutil.rmtree(later)  # had it been faster than the signal
    Trainer({**settings, "output_dir": str(killed), "resume_from_checkpoint": "latest"}).train()
    assert_same_run(straight, killed)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_run_goes_on_from_within_an_epoch_to_the_bit(tmp_path, settings, loss_type):
    settings |= {"loss_type": loss_type, **LOSSES[loss_type]}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**settings, "output_dir": str(straight)}).train()
    shutil.copytree(straight, resumed)
    for folder in ("checkpoint-6", "checkpoint-9", "checkpoint-10", "final"):
        shutil.rmtree(resumed / folder)
    Trainer({**settings, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert_same_run(straight, resumed)


def assert_same_run(straight: Path, resumed: Path) -> None:
    for folder in ("checkpoint-10", "final"):
        files, expected = read_bytes(resumed / folder), read_bytes(straight / folder)
        assert files.keys() == expected.keys()
        assert {name for name in files if files[name] != expected[name]} <= {"training_state.json"}
    assert class_state(resumed / "checkpoint-10")["classes/weight"].shape[0] >= NUM_CLASSES
    lines, expected_lines = (read_lines(run / "metrics.jsonl") for run in (resumed, straight))
    assert lines == expected_lines


def relabelled(path: str, **names: str) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{**row, "group": names.get(row["group"], row["group"])} for row in rows]


def test_a_run_does_not_go_on_with_other_classes(tmp_path, settings, classes):
    settings |= {"loss_type": "arcface", "max_steps": 3}
    data = Path(classes).parent / "changing.jsonl"
    write_jsonl(data, relabelled(classes))
    Trainer({**settings, "data_path": str(data)}).train()
    before = read_bytes(tmp_path / "run")
    write_jsonl(data, relabelled(classes, c1="other", c2="c0"))
    with pytest.raises(
        ConfigError, match="trained on 5 classes; 2 of them are gone from the training data, and 1 are new"
    ):
        Trainer({**settings, "data_path": str(data), "resume_from_checkpoint": "latest", "max_steps": 6}).train()
    assert read_bytes(tmp_path / "run") == before


def test_weights_of_classes_that_were_changed_are_refused(tmp_path, settings):
    Trainer({**settings, "loss_type": "proxy_anchor", "max_steps": 3}).train()
    file = tmp_path / "run" / "checkpoint-3" / STATE
    tensors = load_file(file)
    tensors["classes/weight"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"training_state.safetensors is damaged"):
        Trainer({**settings, "loss_type": "proxy_anchor", "resume_from_checkpoint": "latest"}).train()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"rows": [{"group": None}]},
            DataError,
            r"rows.jsonl:1: group: is missing; the loss needs the class of every row",
        ),
        ({"rows": [{"group": "x"}, {"group": "x"}]}, ConfigError, "needs at least 2, but the training rows hold 1"),
        ({"rows": [{"score": 0}]}, DataError, "0 says that the positive is not relevant"),
        ({"temperature": 0.1}, ConfigError, "temperature: only loss_type: .*infonce.* has this key; take it out"),
        ({"learn_temperature": False}, ConfigError, "learn_temperature: only loss_type: "),
        ({"sub_centres": 2, "loss_type": "proxy_anchor"}, ConfigError, "sub_centres: only loss_type: arcface has this"),
        (
            {"class_learning_rate": 0.1, "loss_type": "infonce"},
            ConfigError,
            "only loss_type: arcface or proxy_anchor has",
        ),
        ({"class_learning_rate": 0}, ConfigError, "class_learning_rate: expected float, greater than 0"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_written(tmp_path, settings, classes, change, error, words):
    changes = {"loss_type": "arcface", **change}
    if rows := changes.pop("rows", None):
        data = Path(classes).parent / "rows.jsonl"
        write_jsonl(data, [{**row, **new} for row, new in zip(relabelled(classes), rows, strict=False)])
        changes["data_path"] = str(data)
    with pytest.raises(error, match=words):
        Trainer({**settings, **changes}).train()
    assert not (tmp_path / "run").exists()


def test_a_presets_temperature_is_left_out(settings):
    config = Trainer({**settings, "loss_type": "arcface"}).config()
    assert "temperature" not in config.to_flat()
    assert {entry.key for entry in config.dropped} == {"temperature", "learn_temperature"}
    assert Trainer({**settings, "loss_type": "infonce"}).config().to_flat()["temperature"] is None
    distilled = Trainer({**settings, "loss_type": "arcface", "use_distillation": True, "temperature": 0.2}).config()
    assert distilled.to_flat()["temperature"] == 0.2  # of the scores that are compared with a teacher's


def test_the_overview_counts_the_weights_of_classes(settings):
    overviews = [
        Trainer({**settings, "loss_type": "arcface", "sub_centres": number, "weight_decay": 0.02}).overview()
        for number in (1, 1000)
    ]
    groups = [{group.part: group for group in one.groups} for one in overviews]
    assert [one["classes"].num_parameters for one in groups] == [5 * DIM, 5000 * DIM]
    assert (groups[0]["classes"].learning_rate, groups[0]["classes"].weight_decay) == (1e-2, 0.02)
    assert any(line.startswith("classes  new") for line in overviews[0].lines())
    more = {name: overviews[1].memory.parts[name] - size for name, size in overviews[0].memory.parts.items()}
    added = 4 * (5000 - 5) * DIM
    assert (more["weights"], more["gradients"], more["AdamW"]) == (added, added, 2 * added)
    assert more["embeddings and scores"] > 2 * added


def test_the_gradient_of_the_weights_is_clipped_with_all_others(tmp_path, settings):
    quiet = {"augment": "none", "batch_size": 30, "max_steps": 1, "warmup_ratio": 0, "loss_type": "arcface"}
    Trainer({**settings, **quiet, "adam_epsilon": 1.0, "weight_decay": 0}).train()
    moments = class_state(tmp_path / "run" / "checkpoint-1")["optimizer/classes/weight/exp_avg"] / (1 - 0.9)
    others = load_file(tmp_path / "run" / "checkpoint-1" / STATE)
    norms = [value.norm() / (1 - 0.9) for name, value in others.items() if name.endswith("/exp_avg")]
    assert torch.stack(norms).norm().item() == pytest.approx(1.0, rel=1e-4)
    assert 0 < moments.norm() < 1


def test_adapters_with_several_batches_per_step_go_on_to_the_bit_too(tmp_path, settings):
    settings |= {"loss_type": "arcface", "sub_centres": 2, "use_lora": True, "lora_dropout": 0.1, "use_mrl": True}
    settings |= {"mrl_dims": [20, 8], "gradient_accumulation_steps": 2, "save_steps": 2, "epochs": 2}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**settings, "output_dir": str(straight)}).train()
    shutil.copytree(straight, resumed)
    for folder in ("checkpoint-4", "checkpoint-6", "final"):
        shutil.rmtree(resumed / folder)
    Trainer({**settings, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    for folder in ("checkpoint-6", "final"):
        files, expected = read_bytes(resumed / folder), read_bytes(straight / folder)
        assert {name for name in files if files[name] != expected[name]} <= {"training_state.json"}
    assert not [name for name in load_file(resumed / "final" / "model.safetensors") if "class" in name]
