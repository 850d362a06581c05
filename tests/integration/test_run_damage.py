"""What is not what was written is refused by the name of its file; a run never goes on with other numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.pictures import write_pairs
from tests.runs import read_bytes
from vembed.errors import CheckpointError, VembedError
from vembed.trainer import Trainer
from vembed.training.run.checkpoint import Checkpoints
from vembed.training.run.facts import read_run_facts
from vembed.training.run.folder import RunFolder
from vembed.training.run.tensors import byte_sum
from vembed.training.state import TrainState
from vembed.utils.sealed import read_sealed, write_sealed

STATE, TENSORS, SPEC = "training_state.json", "training_state.safetensors", "vembed_config.json"


@pytest.fixture(scope="module")
def settings(tmp_path_factory, bert_folder):
    return {
        "model_name": bert_folder,
        "data_path": write_pairs(tmp_path_factory.mktemp("data"), 24, "t2t"),
        "retrieval_mode": "t2t",
        **{"batch_size": 4, "max_steps": 2, "save_steps": 1, "logging_steps": 1, "val_fraction": 0.2, "eval_steps": 1},
        **{"report": False, "device": "cpu", "bootstrap_samples": 0, "freeze_layers": {"text": 1}},
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("trained") / "run"
    Trainer({**settings, "output_dir": str(folder)}).train()
    return folder


def resume(folder, settings, **changes):
    again = {**settings, "output_dir": str(folder), "resume_from_checkpoint": "latest", "max_steps": 3, **changes}
    return Trainer(again).train()


def flip(file: Path, position: float, bit: int = 0) -> None:
    """Flip a bit so far into the file, in [0, 1)."""
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def change(file: Path, **values: object) -> None:
    """Other values in a JSON file, which keeps its checksum."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def without_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith("exp_avg"))]
    save_file(tensors, file)


def in_a_frozen_weight(file: Path) -> None:
    tensors = load_file(file)
    name = next(name for name in tensors if "embeddings.word" in name)
    tensors[name].view(-1)[5] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "state cut": (f"checkpoint-2/{STATE}", cut),
    "state empty": (f"checkpoint-2/{STATE}", lambda file: file.write_bytes(b"")),
    "state of another type": (f"checkpoint-2/{STATE}", lambda file: file.write_text("[1, 2]")),
    "state nested": (f"checkpoint-2/{STATE}", lambda file: file.write_text("[" * 100_000)),
    "state not UTF-8": (f"checkpoint-2/{STATE}", lambda file: flip(file, 0.5, 7)),
    "state with another step": (f"checkpoint-2/{STATE}", lambda file: replace(file, '"step": 2', '"step": 3')),
    "state with another place": (
        f"checkpoint-2/{STATE}",
        lambda file: replace(file, '"num_batches": 2', '"num_batches": 1'),
    ),
    "state with a huge number": (
        f"checkpoint-2/{STATE}",
        lambda file: replace(file, '"epoch": 0', f'"epoch": {"9" * 5000}'),
    ),
    "state without its checksum": (
        f"checkpoint-2/{STATE}",
        lambda file: file.write_text(json.dumps(read_sealed(file))),
    ),
    "state without a key": (
        f"checkpoint-2/{STATE}",
        lambda file: write_sealed(file, {k: v for k, v in read_sealed(file).items() if k != "rows"}),
    ),
    "state with a list for a number": (
        f"checkpoint-2/{STATE}",
        lambda file: write_sealed(file, {**read_sealed(file), "state": [3]}),
    ),
    "moments flipped": (f"checkpoint-2/{TENSORS}", lambda file: flip(file, 0.6, 3)),
    "moments flipped at the end": (f"checkpoint-2/{TENSORS}", lambda file: flip(file, 0.9999)),
    "header flipped": (f"checkpoint-2/{TENSORS}", lambda file: flip(file, 0.001, 6)),
    "moments cut": (f"checkpoint-2/{TENSORS}", cut),
    "moments missing": (f"checkpoint-2/{TENSORS}", without_a_tensor),
    "moments gone": (f"checkpoint-2/{TENSORS}", Path.unlink),
    "a weight flipped": ("checkpoint-2/model.safetensors", lambda file: flip(file, 0.9, 2)),
    "a frozen weight flipped": ("checkpoint-2/model.safetensors", in_a_frozen_weight),
    "the spec changed": (f"checkpoint-2/{SPEC}", lambda file: replace(file, '"normalize": true', '"normalize": false')),
    "the spec's run changed": (f"checkpoint-2/{SPEC}", lambda file: change(file, step=1)),
    "best with another figure": (
        f"best/{SPEC}",
        lambda file: change(file, best={"metric": "ndcg@10", "value": -1.0}),
    ),
    "best without a figure": (f"best/{SPEC}", lambda file: change(file, best=3)),
    "a weight of best flipped": ("best/model.safetensors", lambda file: flip(file, 0.7, 4)),
    "the heads of best cut": ("best/vembed_heads.safetensors", cut),
    "the split changed": ("split.json", lambda file: replace(file, '"validation": [', '"validation": [0,')),
    "the split cut": ("split.json", cut),
    "figures changed": ("metrics.jsonl", lambda file: replace(file, '"step": 1', '"step": 7')),
    "figures cut": ("metrics.jsonl", cut),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused_by_the_name_of_its_file(tmp_path, settings, trained, name, damage):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    damage(run / name)
    before = {file: content for file, content in read_bytes(run).items() if file != "config.yaml"}
    folder, file = Path(name).parts if "/" in name else ("", name)
    with pytest.raises(VembedError) as caught:
        resume(run, settings)
    assert caught.value.exit_code in (1, 2)
    assert (folder if name.endswith("model.safetensors") else file) in str(caught.value)
    assert {file: content for file, content in read_bytes(run).items() if file != "config.yaml"} == before


def test_what_is_whole_goes_on(tmp_path, settings, trained):
    shutil.copytree(trained, tmp_path / "run")
    assert resume(tmp_path / "run", settings).num_steps == 3


def test_a_checkpoint_of_the_format_before_goes_on_and_may_say_auto(tmp_path, settings, trained, monkeypatch):
    """As earlier versions wrote it: no checksums but a sum of the weights' bytes, and the words of the config."""

    def old_record(self: Checkpoints, state: TrainState, tensors: object) -> dict[str, object]:
        record = new_record(self, state, tensors) | {"format": 1, "weights": byte_sum(self._named_parameters())}
        record["settings"]["mixed_precision"] = "auto"
        del record["tensors"], record["state"]["metrics_checksum"]
        return record

    run, new_record = tmp_path / "run", Checkpoints._record
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_record", old_record)
        patch.setattr("vembed.training.run.checkpoint.sealed_text", lambda values: json.dumps(values).encode())
        Trainer({**settings, "output_dir": str(run)}).train()
    file = run / "checkpoint-2" / STATE
    old = json.loads(file.read_text())
    file.write_text(json.dumps({**old, "weights": old["weights"] + 1}))
    with pytest.raises(CheckpointError, match="not those that were trained"):
        resume(run, settings)
    file.write_text(json.dumps(old))
    resume(run, settings)
    shutil.copytree(trained, tmp_path / "straight")
    resume(tmp_path / "straight", settings)
    weights = "final/model.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "straight" / weights).read_bytes()


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_mixed_precision_is_what_auto_stood_for(tmp_path, settings, precision):
    own = {**settings, "max_steps": 1, "output_dir": str(tmp_path / "run")}
    Trainer({**own, "mixed_precision": precision}).train()
    again = {**own, "resume_from_checkpoint": "latest", "max_steps": 2, "mixed_precision": "auto"}
    if precision == "no":  # what auto is on a CPU
        assert Trainer(again).train().num_steps == 2
        return
    with pytest.raises(VembedError, match="mixed_precision: the checkpoint was trained with 'bf16', now it is 'no'"):
        Trainer(again).train()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.json", cut),
        ("run.json", lambda file: replace(file, '"num_rows": ', '"num_rows": 1')),
        ("run.json", lambda file: write_sealed(file, {**read_sealed(file), "plan": 3})),
        ("metrics.jsonl", cut),
        ("metrics.jsonl", lambda file: file.write_text("3\n")),
        ("metrics.jsonl", lambda file: file.write_text('{"loss": 1}\n')),
        ("metrics.jsonl", lambda file: file.write_bytes(b"\xff\n")),
        (f"final/{SPEC}", lambda file: change(file, step=9)),
        (f"final/{SPEC}", lambda file: file.write_text("{}")),
    ],
)
def test_a_report_refuses_damaged_facts_by_the_name_of_their_file(tmp_path, trained, name, damage):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    read_run_facts(RunFolder(run))
    damage(run / name)
    with pytest.raises(CheckpointError, match=Path(name).name):
        read_run_facts(RunFolder(run))
