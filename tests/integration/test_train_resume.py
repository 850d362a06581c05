"""A run that was stopped and goes on in another process does what it would have done, to the bit."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cases import CASES
from tests.pictures import write_pairs
from tests.runs import finish, read_bytes, read_lines, start_training, two_data_sets, wait_for, wait_until_caught
from vembed.errors import CheckpointError, ConfigError, DataError
from vembed.trainer import Trainer
from vembed.training.run.folder import read_saved_facts
from vembed.training.state import Best
from vembed.training.step import auto_chunking
from vembed.utils.sealed import read_sealed, sealed, write_sealed


@pytest.fixture(scope="module")
def settings(tmp_path_factory, bert_folder, vit_folder):
    """Ten steps over two data sets with dropout, augmentation and accumulation; step 5 is in the midst of epoch 2."""
    return {
        "text_model_name": bert_folder,
        "image_model_name": vit_folder,
        "data_path": two_data_sets(tmp_path_factory.mktemp("data")),
        "val_fraction": 0.2,
        "augment": "strong",
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "gradient_cache_chunk_size": 3,
        "epochs": 90,
        "max_steps": 10,
        "logging_steps": 2,
        "eval_steps": 4,
        "save_steps": 5,
        "save_total_limit": 9,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "report": False,
        "device": "cpu",
    }


def copy_without(straight, resumed, *folders):
    """The run's folder as one leaves it that died before these were written."""
    shutil.copytree(straight, resumed, ignore=shutil.ignore_patterns(*folders))


def assert_same_run(straight, resumed, last="checkpoint-10", folders=("best", "final")):
    """Parameters, optimiser, random states, counters, metrics, and what is deployed."""
    tensors, expected = (load_file(run / last / "training_state.safetensors") for run in (resumed, straight))
    assert tensors.keys() == expected.keys()
    assert len(tensors) >= 15
    assert [name for name in tensors if not tensors[name].equal(expected[name])] == []
    for folder in (last, *folders):
        files, expected_files = read_bytes(resumed / folder), read_bytes(straight / folder)
        assert files.keys() == expected_files.keys()
        different = {name for name in files if files[name] != expected_files[name]}
        assert different <= {"training_state.json"}  # it has the time that was taken
    assert read_lines(resumed / "metrics.jsonl") == read_lines(straight / "metrics.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full", marks=pytest.mark.slow),
        pytest.param(
            {"use_lora": True, "lora_dropout": 0.1, "num_workers": 2}, id="adapters and workers", marks=pytest.mark.slow
        ),
        pytest.param(
            {"image_host_cache": "encoded", "gradient_cache_chunk_size": None, "gradient_cache_chunk_tokens": 40},
            id="files and chunks of tokens",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ten_steps_are_five_and_a_restart_and_five(tmp_path, settings, changes):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    own = {key: value for key, value in {**settings, **changes}.items() if value is not None}
    Trainer({**own, "output_dir": str(straight)}).train()
    assert [line["step"] for line in read_lines(straight / "metrics.jsonl") if "loss" in line] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in read_lines(straight / "metrics.jsonl") if "eval" in line] == [4, 8, 10]

    # As a run leaves its folder that dies after step 8: a checkpoint of step 5, and lines and a best that are newer.
    copy_without(straight, resumed, "checkpoint-10", "final")
    lines = (resumed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (resumed / "metrics.jsonl").write_text("".join(lines[:-2]))
    again = {**own, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}
    code, output = finish(start_training(again))
    assert code == 0, output
    assert "training from step 5 to 10" in output
    assert_same_run(straight, resumed)


def test_what_auto_chose_stays_whatever_is_free_afterwards(tmp_path, settings, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "vembed")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    own = {**settings, "gradient_cache_chunk_size": "auto", "gradient_cache_retain": "auto"}
    monkeypatch.setattr(auto_chunking, "free_memory_bytes", lambda _device: 2**20)
    Trainer({**own, "output_dir": str(straight)}).train()
    assert caplog.text.count("a batch of") == len(settings["data_path"])
    chosen = json.loads((straight / "checkpoint-5" / "training_state.json").read_text())["state"]["chunks"]
    assert chosen["gradient_cache_chunk_size"] < settings["batch_size"]

    copy_without(straight, resumed, "checkpoint-10", "final")
    monkeypatch.setattr(auto_chunking, "free_memory_bytes", lambda _device: 2**40)
    caplog.clear()
    Trainer({**own, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert (
        f"auto stays what the run began with: gradient_cache_chunk_size {chosen['gradient_cache_chunk_size']}"
        in caplog.text
    )
    assert_same_run(straight, resumed)


@pytest.mark.parametrize(
    "adapters",
    [{}, pytest.param({"use_lora": True, "lora_target_modules": ["query", "conv_stem"]}, marks=pytest.mark.slow)],
)
def test_statistics_of_batch_norm_go_on_too(tmp_path, settings, timm_folder, adapters):
    """Convolutions and trained batch norm, without the gradient cache; here in the same process."""
    own = {**settings, **adapters, "image_model_name": timm_folder}
    own |= {"use_gradient_cache": False, "train_batch_norm": True, "max_steps": 4, "save_steps": 2}
    del own["gradient_cache_chunk_size"], own["eval_steps"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**own, "output_dir": str(straight)}).train()
    copy_without(straight, resumed, "checkpoint-4", "final")
    Trainer({**own, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert_same_run(straight, resumed, last="checkpoint-4")
    file = "adapter_model.safetensors" if adapters else "model.safetensors"
    weights = [load_file(straight / f"checkpoint-{step}" / "image" / file) for step in (2, 4)]
    means = [name for name in weights[0] if name.endswith("running_mean")]
    assert means
    assert not weights[0][means[0]].equal(weights[1][means[0]])


@pytest.mark.parametrize("use_lora", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "mode"),
    [("clip", "t2i"), ("siglip", "m2i"), ("bert", "t2t"), ("vit", "i2i"), ("dinov2", "i2i"), ("timm", "i2i")],
)
def test_every_family_goes_on_exactly(tmp_path, request, family, mode, use_lora):
    adapters = {"use_lora": True, "lora_target_modules": ["conv_stem"] if family == "timm" else None}
    settings = {
        "model_name": request.getfixturevalue(f"{family}_folder"),
        "data_path": write_pairs(tmp_path / "data", 9, mode),
        "retrieval_mode": mode,
        **{"batch_size": 3, "max_steps": 4, "save_steps": 2, "save_total_limit": 9, "val_fraction": 0.0},
        **{"report": False, "device": "cpu", "learning_rate": 1e-3, "logging_steps": 1},
        **(adapters if use_lora else {}),
    }
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**settings, "output_dir": str(straight)}).train()
    copy_without(straight, resumed, "checkpoint-4")
    Trainer({**settings, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert_same_run(straight, resumed, last="checkpoint-4", folders=("final",))


@pytest.mark.parametrize(
    ("name", "mode", "changes"),
    [
        pytest.param("sentence", "t2t", {}, marks=pytest.mark.slow),  # layers after the pooling
        pytest.param("colbert", "t2t", {}, marks=pytest.mark.slow),  # a new projection
        ("qwen3_vl", "m2i", {"freeze": ["vision"]}),
        pytest.param("colpali", "t2i", {"use_dora": True}, marks=pytest.mark.slow),
        pytest.param("vit", "i2i", {"pooling": "gem"}, marks=pytest.mark.slow),
        ("clip_gated", "m2i", {"torch_dtype": "bfloat16"}),
    ],
)
def test_adapters_of_any_kind_go_on_exactly(tmp_path, name, mode, changes):
    case = CASES[name]
    make = CASES["clip"].make if name == "clip_gated" else case.make
    settings = {
        "model_name": make(str(tmp_path / "model")),
        "data_path": write_pairs(tmp_path / "data", 9, mode),
        "retrieval_mode": mode,
        **{"batch_size": 3, "max_steps": 4, "save_steps": 2, "save_total_limit": 9, "val_fraction": 0.0},
        **{"report": False, "device": "cpu", "learning_rate": 1e-3, "logging_steps": 1, "use_lora": True},
        **case.settings,
        **changes,
    }
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**settings, "output_dir": str(straight)}).train()
    copy_without(straight, resumed, "checkpoint-4")
    Trainer({**settings, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert_same_run(straight, resumed, last="checkpoint-4", folders=("final",))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path, settings, number, code):
    stopped = tmp_path / "stopped"
    slow = {**settings, "num_workers": 2, "save_steps": None, "logging_steps": 1, "max_steps": 100}
    process = start_training({**slow, "output_dir": str(stopped)}, start_new_session=True)
    wait_for(stopped / "metrics.jsonl", process)
    os.killpg(process.pid, number)  # as a terminal does: the loader's processes get it too
    returned, output = finish(process)
    assert returned == code, output
    (checkpoint,) = stopped.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert f"after step {step} of 100" in output
    assert f"vembed train {stopped}/config.yaml --resume_from_checkpoint latest" in output
    assert not (stopped / "final").exists()

    again = Trainer(slow, output_dir=str(stopped), resume_from_checkpoint="latest", max_steps=step + 2)
    assert again.train().num_steps == step + 2
    assert (stopped / "final").is_dir()
    assert [line["step"] for line in read_lines(stopped / "metrics.jsonl") if "loss" in line] == [*range(1, step + 3)]


@pytest.mark.parametrize("timm", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["dropout", "batch norm"])
def test_a_picture_that_cannot_be_read_leaves_a_checkpoint_of_the_step_before(tmp_path, settings, timm_folder, timm):
    """It stands in the second batch of its step: what the first one moved is put back."""
    own = {**settings, "max_steps": 4, "save_steps": None, "eval_steps": None, "augment": "none", "seed": 3}
    if timm:
        own |= {"image_model_name": timm_folder, "use_gradient_cache": False, "train_batch_norm": True}
        del own["gradient_cache_chunk_size"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**own, "output_dir": str(straight)}).train()
    picture = Path(settings["data_path"][0]["path"]).parent / "positive_8.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    try:
        with pytest.raises(DataError) as caught:
            Trainer({**own, "output_dir": str(resumed)}).train()
    finally:
        picture.write_bytes(whole)
    words = str(caught.value)
    assert picture.name in words
    assert f"stopped after step 1 of 4; {resumed}/checkpoint-1 is written" in words
    assert f"vembed train {resumed}/config.yaml --resume_from_checkpoint latest; mend the data first" in words
    again = Trainer({**own, "output_dir": str(resumed), "resume_from_checkpoint": "latest", "on_bad_sample": "skip"})
    again.train()
    assert_same_run(straight, resumed, last="checkpoint-4")


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path, settings):
    """While a long step runs, the first signal waits and the second does not."""
    data = [{"path": write_pairs(tmp_path / "data", 60, "i2i"), "retrieval_mode": "i2i", "weight": 50}]
    slow = {**settings, "data_path": data, "gradient_cache_chunk_size": 1, "gradient_accumulation_steps": 5000}
    process = start_training({**slow, "output_dir": str(tmp_path / "run")})
    wait_until_caught(process, signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any("once more stops at once" in line for line in process.stderr)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    # Python ends itself by the signal, which is 130 to a shell, where it came while a module was being imported.
    assert code in {130, -signal.SIGINT}, output
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_settings_that_matter_may_not_change(tmp_path, settings):
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    Trainer(few).train()
    before = read_bytes(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"batch_size: .* with 4, now it is 5\nlr_scheduler: .* 'cosine', now .* 'linear'"
    ):
        Trainer({**few, "resume_from_checkpoint": "latest", "batch_size": 5, "lr_scheduler": "linear"}).train()
    assert read_bytes(tmp_path / "run") == before


def test_a_checkpoint_from_before_there_was_a_key_goes_on_with_its_default(tmp_path, settings):
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    Trainer(few).train()
    record = tmp_path / "run" / "checkpoint-1" / "training_state.json"
    saved = read_sealed(record)
    assert (saved["settings"].pop("freeze_layers"), saved["settings"].pop("hardness_strength")) == ({}, None)
    write_sealed(record, saved)
    again = {**few, "resume_from_checkpoint": "latest", "max_steps": 2}
    with pytest.raises(ConfigError, match=r"^hardness_strength: the checkpoint was trained with None, now it is 2.0\n"):
        Trainer({**again, "hardness_strength": 2.0}).train()
    assert Trainer(again).train().num_steps == 2


def test_a_damaged_checkpoint_is_refused(tmp_path, settings):
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    Trainer(few).train()
    (tmp_path / "run" / "checkpoint-1" / "training_state.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="checkpoint-1 is not a whole checkpoint"):
        Trainer({**few, "resume_from_checkpoint": "latest"}).train()


def test_weights_that_are_not_those_of_the_run_are_refused(tmp_path, settings):
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    Trainer(few).train()
    Trainer({**few, "seed": 3, "output_dir": str(tmp_path / "other")}).train()
    heads = "checkpoint-1/vembed_heads.safetensors"
    shutil.copy(tmp_path / "other" / heads, tmp_path / "run" / heads)
    with pytest.raises(CheckpointError, match="not those that were trained"):
        Trainer({**few, "resume_from_checkpoint": "latest"}).train()


def test_a_finished_run_that_is_resumed_is_finished(tmp_path, settings):
    few = {**settings, "max_steps": 2, "output_dir": str(tmp_path / "run")}
    first = Trainer(few).train()
    again = Trainer({**few, "resume_from_checkpoint": "latest"}).train()
    assert again.best == first.best
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [2, 2]


def test_best_is_what_its_folder_holds(tmp_path, settings):
    """A run that died after it wrote a better best/ than its last checkpoint knows of."""
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    first = Trainer(few).train()
    assert first.best is not None
    record = tmp_path / "run" / "best" / "vembed_config.json"
    newer = read_saved_facts(record) | {"step": 7, "best": {"metric": "ndcg@10", "value": 0.999}}
    record.write_text(json.dumps(json.loads(record.read_text()) | sealed(newer)))
    again = Trainer({**few, "resume_from_checkpoint": "latest", "max_steps": 2}).train()
    assert again.best == Best("ndcg@10", 0.999, 7)
    assert json.loads((again.final / "vembed_config.json").read_text())["step"] == 7


def test_a_best_that_is_gone_is_chosen_anew(tmp_path, settings):
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    Trainer(few).train()
    shutil.rmtree(tmp_path / "run" / "best")
    again = Trainer({**few, "resume_from_checkpoint": "latest", "max_steps": 2}).train()
    assert again.best is not None
    assert again.best.step == 2
    assert read_bytes(again.final) == read_bytes(tmp_path / "run" / "best")


def test_continuing_leaves_the_origins_in_the_config(tmp_path, settings):
    few = {**settings, "max_steps": 1, "eval_steps": None, "output_dir": str(tmp_path / "run")}
    Trainer(few).train()
    config = tmp_path / "run" / "config.yaml"
    before = config.read_text()
    assert "batch_size: 4  # argument" in before
    Trainer(config).train(resume_from_checkpoint="latest")
    assert config.read_text() == before
    Trainer(config).train(resume_from_checkpoint="latest", save_steps=1)
    assert "save_steps: 1  # argument" in config.read_text()
