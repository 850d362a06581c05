"""Trackers of real runs: TensorBoard's event files, read back as TensorBoard reads them, and one of a plugin."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.documents import ROOT, documents
from tests.pictures import write_jsonl, write_pairs
from vembed.errors import CheckpointError, DataError
from vembed.trainer import Trainer
from vembed.training.loop import Callback
from vembed.training.trackers.registry import CallbackRegistry
from vembed.training.trackers.scalars import numbers_of


@pytest.fixture
def settings(tmp_path, clip_folder):
    """Two epochs of three steps, the checkpoints of which are written before the evaluation of their step."""
    return {
        "model_name": clip_folder,
        "data_path": write_pairs(tmp_path / "data", 30, "t2i"),
        "output_dir": str(tmp_path / "run"),
        "val_fraction": 0.2,
        "batch_size": 8,
        "epochs": 2,
        "save_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": ["tensorboard"],
        "report": False,
        "device": "cpu",
    }


@pytest.fixture
def _own_trackers(monkeypatch):
    """Trackers and import paths that plugins add are gone after the test."""
    monkeypatch.setattr(CallbackRegistry, "_components", dict(CallbackRegistry._components))
    monkeypatch.setattr(sys, "path", list(sys.path))


def lines_of(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def points_of_lines(run):
    """(name, step, number) of all lines of metrics.jsonl; TensorBoard holds numbers in float32."""
    lines = [(line["step"], numbers_of(line)) for line in lines_of(run)]
    return [(name, step, float(np.float32(number))) for step, numbers in lines for name, number in numbers.items()]


def points_of_events(run):
    """The same of event files."""
    events = EventAccumulator(str(Path(run) / "trackers" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = events.Tags()["scalars"]
    return [(name, event.step, event.value) for name in names for event in events.Scalars(name)]


def assert_events_are_lines(run):
    """Each number of metrics.jsonl once, and nothing else. Peak memory is read anew for every callback."""
    points, expected = points_of_events(run), points_of_lines(run)
    assert Counter(point[:2] for point in points) == Counter(point[:2] for point in expected)
    assert len(expected) > 50
    values = {point[:2]: point[2] for point in points}
    for name, step, number in expected:
        assert values[name, step] == (pytest.approx(number, rel=0.05) if name == "peak_memory_mib" else number), name


def die_after(run, step):
    """Leave the run's folder as a run does that was killed after this step, the events still being there."""
    for name in (f"checkpoint-{step + 1}", "final"):
        for path in sorted((run / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (run / name).rmdir()
    kept = [line for line in lines_of(run) if line["step"] <= step]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


def test_event_files_hold_the_numbers_of_every_line(tmp_path, settings):
    Trainer(settings).train()
    assert_events_are_lines(tmp_path / "run")
    names = {name for name, *_ in points_of_events(tmp_path / "run")}
    assert names > {"loss", "learning_rate", "learning_rates/vision", "grad_norm", "samples_per_second", "temperature"}
    assert {name for name in names if name.startswith("eval/")} >= {"eval/t2i/recall@1", "eval/t2i/mrr"}


def test_without_the_key_there_are_none(tmp_path, settings):
    Trainer({**settings, "report_to": [], "max_steps": 1}).train()
    assert not (tmp_path / "run" / "trackers").exists()


def test_a_resumed_run_has_every_step_once(tmp_path, settings):
    run = tmp_path / "run"
    Trainer(settings).train()
    die_after(run, 5)
    assert [line["step"] for line in lines_of(run) if "eval" in line] == [3]  # after checkpoint-3 was written
    state = json.loads((run / "checkpoint-3" / "training_state.json").read_text())["state"]
    assert (state["num_metrics_lines"], state["evaluated_step"]) == (3, 0)
    before = points_of_events(run)

    Trainer({**settings, "resume_from_checkpoint": "latest"}).train()
    assert [line["step"] for line in lines_of(run) if "eval" in line] == [3, 6]
    assert_events_are_lines(run)
    assert len(list((run / "trackers" / "tensorboard").iterdir())) == 2
    unchanged = [point for point in before if point[0] not in ("samples_per_second", "peak_memory_mib")]
    assert set(unchanged) <= set(points_of_events(run))


def test_a_run_that_is_tracked_from_a_checkpoint_on_has_all_of_it(tmp_path, settings):
    run = tmp_path / "run"
    Trainer({**settings, "report_to": []}).train()
    die_after(run, 5)
    Trainer({**settings, "resume_from_checkpoint": "latest"}).train()
    assert_events_are_lines(run)


def test_a_missing_package_is_told_before_anything_is_written(tmp_path, settings):
    """In a process where Python does not find tensorboard."""
    (tmp_path / "hide" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "hide"), str(ROOT)])}
    command = [sys.executable, "-m", "vembed", "train", "my.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert (
        'report_to: tensorboard needs the package tensorboard; pip install "vembed-factory[tracking]"' in result.stderr
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_own_trackers")
def test_the_tracker_of_the_page_runs_as_a_plugin_beside_tensorboard(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [block.code for block in documents()["docs/training.md"].blocks if "my_trackers.py" in block.code]
    (tmp_path / "my_trackers.py").write_text(code)
    own = {**settings, "plugins": ["my_trackers"], "report_to": ["table", "tensorboard"]}
    Trainer(own).train()
    assert_events_are_lines(tmp_path / "run")
    assert_table_is_lines(tmp_path / "run")
    die_after(tmp_path / "run", 5)
    Trainer({**own, "resume_from_checkpoint": "latest"}).train()
    assert_events_are_lines(tmp_path / "run")
    assert_table_is_lines(tmp_path / "run")


def assert_table_is_lines(run):
    rows = [row.split(",") for row in (run / "trackers" / "table" / "numbers.csv").read_text().splitlines()]
    table = [(name, int(step), float(np.float32(float(number)))) for step, name, number in rows]
    leave = "peak_memory_mib"
    assert [row for row in table if row[0] != leave] == [row for row in points_of_lines(run) if row[0] != leave]


class Told:
    """A tracker that notes what it is told, and that it was closed."""

    def __init__(self):
        self.notes = []

    def __call__(self, run):
        self.notes.append(("opened", run.step))
        return self

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, kind, *_):
        self.notes.append(("closed", kind))

    def on_step(self, record, state):
        self.notes.append(("step", state.step))

    def on_log(self, record, state):
        self.notes.append(("log", state.step))

    def on_evaluation(self, metrics, state):
        self.notes.append(("evaluation", state.step))


@pytest.mark.usefixtures("_own_trackers")
def test_a_tracker_is_told_of_everything_and_closed(settings):
    told = Told()
    CallbackRegistry.register("told", told)
    Trainer({**settings, "report_to": ["told"], "max_steps": 3, "logging_steps": 2}).train()
    steps = [("step", 1), ("step", 2), ("log", 2), ("step", 3), ("log", 3)]
    assert told.notes == [("opened", 0), *steps, ("evaluation", 3), ("closed", None)]


@pytest.mark.usefixtures("_own_trackers")
def test_a_tracker_is_closed_when_the_run_fails_and_leaves_nothing_then(tmp_path, settings):
    told = Told()
    CallbackRegistry.register("told", told)
    for number in range(8):
        (tmp_path / f"{number} torn.jpg").write_bytes(b"no picture")
    rows = [{"query": f"row {number}", "positive": f"{number} torn.jpg"} for number in range(8)]
    write_jsonl(tmp_path / "bad.jsonl", rows)
    own = {**settings, "data_path": str(tmp_path / "bad.jsonl"), "val_fraction": 0.0, "batch_size": 4}
    with pytest.raises(DataError, match=r"torn\.jpg"):
        Trainer({**own, "report_to": ["told", "tensorboard"]}).train()
    assert told.notes == [("opened", 0), ("closed", DataError)]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told_in_plain_words(tmp_path, settings):
    Trainer({**settings, "report_to": [], "epochs": 1}).train()
    (tmp_path / "run" / "trackers").mkdir()
    (tmp_path / "run" / "trackers" / "tensorboard").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"run/trackers/tensorboard could not be written"):
        Trainer({**settings, "resume_from_checkpoint": "latest"}).train()
