"""The folder of a run: its paths, and when it may be written, resumed or deleted."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.errors import UsageError
from vembed.training.settings import TrainingSettings
from vembed.utils.files import atomic_file, leftover_of, recover, remove

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
LATEST = "latest"


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. `record` (run.json) says what the run was: data, plan, versions. It marks a folder as a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def bad_samples(self) -> Path:
        return self.path / "bad_samples.jsonl"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers"

    def tracker(self, name: str) -> Path:
        """The folder of the tracker of this name."""
        return self.trackers / name

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of `step`, which need not exist."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """All whole checkpoints, oldest step first."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=checkpoint_step)

    def contents(self) -> list[Path]:
        """Everything here that a run writes, leftovers of a process that died included."""
        if not self.path.is_dir():
            return []
        files = (self.config, self.record, self.metrics, self.split, self.bad_samples)
        known = {*files, self.best, self.final, self.report, self.trackers}
        return [
            path
            for path in sorted(self.path.iterdir())
            if path in known or _CHECKPOINT.fullmatch(path.name) or leftover_of(path) is not None
        ]

    def clear(self) -> None:
        """Delete what a run wrote, and nothing else."""
        for path in self.contents():
            remove(path)


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a folder named checkpoint-<step>.

    >>> checkpoint_step(Path("output/checkpoint-30"))
    30
    """
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise UsageError(
            f"{checkpoint} is not named checkpoint-<step>; resume_from_checkpoint takes `latest` or such a folder"
        )
    return int(match.group(1))


def check_output_dir(settings: TrainingSettings, inputs: Sequence[str] = ()) -> None:
    """Refuse to start where a run would write over something. Changes nothing. Raises UsageError.

    inputs: names of the models and data that the run reads; those that are paths may not lie in what it deletes.
    """
    run = RunFolder(Path(settings.output_dir))
    if run.path.exists() and not run.path.is_dir():
        raise UsageError(f"output_dir {run.path} is a file; name a folder")
    if settings.resume_from_checkpoint is not None:
        find_checkpoint(run, settings.resume_from_checkpoint)
        return
    contents = run.contents()
    if settings.overwrite_output_dir and contents and not run.record.is_file():
        raise UsageError(
            f"overwrite_output_dir: {run.path} has no {run.record.name}, so it is not the folder of a run and nothing"
            " in it is deleted; choose another output_dir"
        )
    own = [name for name in inputs if any(Path(name).resolve().is_relative_to(path.resolve()) for path in contents)]
    if own and settings.overwrite_output_dir:
        raise UsageError(
            f"overwrite_output_dir would delete {', '.join(own)}, which the new run reads; choose another output_dir"
        )
    if contents and not settings.overwrite_output_dir:
        ways_on = (
            "Continue it with resume_from_checkpoint: latest, delete it"
            if run.checkpoints()
            else "It has no checkpoint to continue from: delete it"
        )
        raise UsageError(
            f"output_dir {run.path} already holds a run ({', '.join(path.name for path in contents[:4])}). {ways_on}"
            " and start anew with overwrite_output_dir: true, or choose another output_dir"
        )


def open_run_folder(settings: TrainingSettings) -> RunFolder:
    """The run's folder, ready to be written: old run deleted if asked for, leftovers of a dead process cleared."""
    check_output_dir(settings)
    run = RunFolder(Path(settings.output_dir))
    if settings.overwrite_output_dir and settings.resume_from_checkpoint is None:
        run.clear()
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output_dir {run.path} cannot be made: {error}") from error
    for folder in (run.best, run.final, *_interrupted_checkpoints(run)):
        recover(folder)
    return run


def find_checkpoint(run: RunFolder, name: str) -> Path:
    """The checkpoint that `resume_from_checkpoint` names. Raises UsageError when there is none, or a newer one."""
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise UsageError(
            f"resume_from_checkpoint: {run.path} holds no checkpoint; leave the key out to start"
            + (", with overwrite_output_dir: true" if run.contents() else "")
        )
    if name == LATEST:
        return checkpoints[-1]
    chosen = Path(name)
    if chosen.resolve() not in [path.resolve() for path in checkpoints]:
        raise UsageError(
            f"resume_from_checkpoint: {chosen} is not a checkpoint of output_dir {run.path}, which has"
            f" {', '.join(path.name for path in checkpoints)}"
        )
    newer = [path.name for path in checkpoints if checkpoint_step(path) > checkpoint_step(chosen)]
    if newer:
        raise UsageError(
            f"resume_from_checkpoint: {chosen} is older than {', '.join(newer)}, which training on from it would"
            " replace; move those away first, or use `latest`"
        )
    return chosen


def write_json(file: Path, value: Mapping[str, object]) -> None:
    """Write `value` to `file`, wholly or not at all. Raises CheckpointError when the disk refuses."""
    with atomic_file(file) as new:
        new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _interrupted_checkpoints(run: RunFolder) -> list[Path]:
    """Checkpoints of which a dead process left a temporary folder."""
    names = {leftover_of(path) for path in run.path.iterdir()}
    return [run.path / name for name in names if name is not None and _CHECKPOINT.fullmatch(name)]
