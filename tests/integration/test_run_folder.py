"""A run's folder belongs to one process, which may die at any time, on any disk."""

import os
import resource
import signal
from pathlib import Path

import pytest

from tests.pictures import write_pairs
from tests.runs import finish, read_bytes, read_lines, start_training, wait_for
from vembed.entrypoints.evaluate import evaluate
from vembed.errors import UsageError
from vembed.trainer import Trainer
from vembed.training.run.folder import RunFolder, hold_output_dir
from vembed.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def settings(tmp_path_factory, bert_folder):
    return {
        "model_name": bert_folder,
        "data_path": write_pairs(tmp_path_factory.mktemp("data"), 24, "t2t"),
        "retrieval_mode": "t2t",
        **{"batch_size": 4, "max_steps": 3, "save_steps": 1, "logging_steps": 1, "val_fraction": 0.2, "eval_steps": 2},
        **{"report": False, "device": "cpu", "bootstrap_samples": 0},
    }


def children_of(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("asked", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}], ids=str)
def test_a_second_start_is_refused_while_the_first_lives(tmp_path, settings, asked):
    run = tmp_path / "run"
    first = start_training({**settings, "output_dir": str(run), "max_steps": 10_000, "epochs": 10_000})
    try:
        wait_for(run / "checkpoint-1" / "training_state.json", first)
        second = Trainer({**settings, "output_dir": str(run), **asked})
        with pytest.raises(UsageError, match=rf"output_dir {run}: process {first.pid} on host .*, writes there; "):
            second.train()
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        code, output = finish(first)
    finally:
        first.kill()
    assert code == 128 + signal.SIGTERM, output
    steps = [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert not (run / "run.lock").exists()


def test_after_a_kill_the_run_goes_on_at_once_though_its_workers_live(tmp_path, settings):
    run = tmp_path / "run"
    own = {**settings, "num_workers": 2, "output_dir": str(run)}
    first = start_training({**own, "max_steps": 10_000, "epochs": 10_000})
    workers = []
    try:
        wait_for(run / "checkpoint-2" / "training_state.json", first)
        workers = children_of(first.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # or they might notice that their parent is gone
        first.kill()
        first.wait()
        assert (run / "run.lock").is_file()
        last = max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
        again = {**own, "num_workers": 0, "resume_from_checkpoint": "latest", "max_steps": last + 1, "epochs": 10_000}
        assert Trainer(again).train().num_steps == last + 1
        assert len(workers) >= 2
        for worker in workers:
            assert "State:\tT" in Path(f"/proc/{worker}/status").read_text()  # still there, and stopped
    finally:
        first.kill()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        finish(first)  # the workers have its output open too


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [100, 300, 1500, 3000])
def test_a_start_on_a_full_disk_can_be_started_anew(tmp_path, settings, most_bytes):
    """No file may grow beyond so many bytes: the lock, run.json, then config.yaml cannot be written."""
    run = tmp_path / "run"
    own = {**settings, "output_dir": str(run), "val_fraction": 0.0, "eval_steps": None}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    code, output = finish(start_training(own, preexec_fn=limit))
    assert code in (1, 2), output
    assert "Traceback" not in output
    assert "Error: " in output.splitlines()[-1]
    left = sorted(path.name for path in run.iterdir()) if run.exists() else []
    assert left in ([], ["run.json"])
    Trainer({**own, "overwrite_output_dir": bool(left)}).train()


def test_a_linked_checkpoint_is_rotated_away_and_not_followed(tmp_path, settings):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    own = {**settings, "output_dir": str(run), "save_total_limit": 2}
    Trainer(own).train()
    elsewhere.mkdir()
    for name in ("checkpoint-2", "best", "final"):
        (run / name).rename(elsewhere / name)
        (run / name).symlink_to(elsewhere / name)
    before = read_bytes(elsewhere)
    Trainer({**own, "resume_from_checkpoint": "latest", "max_steps": 5}).train()
    assert [path.name for path in RunFolder(run).checkpoints()] == ["checkpoint-4", "checkpoint-5"]
    assert not (run / "final").is_symlink()
    assert read_bytes(elsewhere) == before


def test_a_report_is_not_written_into_the_folder_of_a_living_run(tmp_path, settings):
    run = RunFolder(tmp_path / "run")
    Trainer({**settings, "output_dir": str(run.path)}).train()
    with hold_output_dir(TrainingSettings(output_dir=str(run.path), resume_from_checkpoint="latest")):
        before = read_bytes(run.path)
        with pytest.raises(UsageError, match=rf"the run {run.path}: process {os.getpid()} .*, with --output_dir$"):
            evaluate(run.path)
        assert evaluate(run.path, report_dir=tmp_path / "report").paths is not None
        assert read_bytes(run.path) == before
    assert evaluate(run.path).paths is not None
    assert not (run.path / "run.lock").exists()


@pytest.mark.slow
def test_two_processes_that_start_at_the_same_moment_make_one_run(tmp_path, settings):
    own = {**settings, "output_dir": str(tmp_path / "run")}
    both = [start_training(own) for _ in range(2)]
    codes = sorted(finish(process)[0] for process in both)
    # The loser comes while the winner trains, or finds its finished run.
    assert codes == [0, 2]
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == [1, 2, 3]
