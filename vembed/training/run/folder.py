"""The folder of a run: its paths, and when it may be written, resumed or deleted."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vembed.errors import CheckpointError, UsageError
from vembed.training.settings import TrainingSettings
from vembed.utils.files import disk_errors, leftover_of, recover, remove
from vembed.utils.lock import LOCK_FILE, FolderLock, lock_folder
from vembed.utils.sealed import read_object, read_sealed, unsealed, write_sealed
from vembed.utils.untrusted import is_folder, is_there

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
LATEST = "latest"
RESOLVED = "# Resolved by vembed"  # how the config.yaml of a run begins

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. `record` (run.json) says what the run was: data, plan, versions. It marks a folder as a run.

    It is what a run writes first and what is deleted last. lock: what keeps other processes from writing here; None for
    who only reads.
    """

    path: Path
    lock: FolderLock | None = field(default=None, compare=False, repr=False)

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
        """Everything here that a run writes, leftovers of a process that died included. Its lock is none of it."""
        if not self.path.is_dir():
            return []
        return [path for path in sorted(self.path.iterdir()) if self.writes(leftover_of(path) or path.name)]

    def is_deletable(self) -> bool:
        """True if all that is here is a run's: run.json says so, or it is what a start leaves that died before that.

        Such are half written files, and of earlier versions config.yaml and split.json.
        """
        whole = [path for path in self.contents() if leftover_of(path) is None]
        left = {self.config, self.split} if self._has_own_config() else {self.config}
        return self.record.is_file() or left.issuperset(whole)

    def clear(self) -> None:
        """Delete what a run wrote, and nothing else. What marks it as a run goes last, so that this can be redone.

        A config.yaml that no run wrote is moved aside. Raises CheckpointError when the disk refuses.
        """
        with disk_errors(self.path):
            if not self.record.is_file() and os.path.lexists(self.config) and not self._has_own_config():
                _move_aside(self.config)
            for path in sorted(self.contents(), key=lambda path: path == self.record):
                remove(path)

    def write_record(self, record: Mapping[str, object]) -> None:
        """Write run.json with a checksum, wholly or not at all. Raises CheckpointError when the disk refuses."""
        write_sealed(self.record, record)

    def check_held(self) -> None:
        """Raise CheckpointError if another process has taken the folder since this one did."""
        if self.lock is not None:
            self.lock.check()

    def writes(self, name: str) -> bool:
        """True if a run writes a file or folder of this name here."""
        files = (self.config, self.record, self.metrics, self.split, self.bad_samples)
        folders = (self.best, self.final, self.report, self.trackers)
        return name in {path.name for path in (*files, *folders)} or _CHECKPOINT.fullmatch(name) is not None

    def _has_own_config(self) -> bool:
        """True if a run wrote config.yaml, or as much of it as a full disk took."""
        if not self.config.is_file():  # a pipe would be waited for
            return False
        try:
            with self.config.open("rb") as file:
                beginning = file.read(len(RESOLVED))
        except OSError:
            return False
        return beginning == RESOLVED.encode()[: len(beginning)]


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


@contextmanager
def hold_output_dir(settings: TrainingSettings, inputs: Sequence[str] = ()) -> Iterator[RunFolder]:
    """The run's folder, into which no other process writes while the block runs.

    Of several ranks the main one calls it.
    Raises UsageError while another process has the folder, and where `check_output_dir` does.
    """
    folder = Path(settings.output_dir)
    _check_place(folder)
    with lock_folder(folder, f"output_dir {folder}", "choose another output_dir") as lock:
        check_output_dir(settings, inputs)
        yield RunFolder(folder, lock)


def check_output_dir(settings: TrainingSettings, inputs: Sequence[str] = ()) -> None:
    """Refuse to start where a run would write over something. Changes nothing. Raises UsageError.

    inputs: names of the models and data that the run reads; those that are paths may not lie in what it deletes.
    Raises CheckpointError when a file of a run that is to go on is damaged, or no file, of which training would say
    nothing before its end.
    """
    run = RunFolder(Path(settings.output_dir))
    _check_place(run.path)
    if settings.resume_from_checkpoint is not None:
        find_checkpoint(run, settings.resume_from_checkpoint)
        _check_files(run)
        return
    contents = run.contents()
    if contents and not run.is_deletable():
        raise UsageError(_not_a_run(run))
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
            f"output_dir {run.path} already holds a run ({_names(contents)}). {ways_on}"
            " and start anew with overwrite_output_dir: true, or choose another output_dir"
        )


def prepare_output_dir(settings: TrainingSettings) -> None:
    """Make the run's folder ready to be written: old run deleted if asked for, leftovers of a dead process cleared.

    The caller holds it (`hold_output_dir`).
    """
    check_output_dir(settings)
    run = RunFolder(Path(settings.output_dir))
    if settings.overwrite_output_dir and settings.resume_from_checkpoint is None:
        run.clear()
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output_dir {run.path} cannot be made: {error}") from error
    with disk_errors(run.path):
        for name in {leftover_of(path) for path in run.contents()}:
            if name is not None:
                recover(run.path / name)


def find_checkpoint(run: RunFolder, name: str) -> Path:
    """The checkpoint that `resume_from_checkpoint` names. Raises UsageError when there is none, or a newer one."""
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise UsageError(f"resume_from_checkpoint: {run.path} holds no checkpoint; {_how_to_start(run)}")
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


def read_saved_facts(file: Path) -> Mapping[str, Any]:  # Any: JSON
    """The entries of a run in a model's vembed_config.json: step, figure, loss. Raises CheckpointError.

    What describes the model itself is not looked at, and may be edited.
    """
    model = ("version", "spec", "base_model")
    return unsealed({key: value for key, value in read_object(file).items() if key not in model}, file)


def run_around(path: Path) -> RunFolder | None:
    """The run that writes and deletes what is at `path`: it lies in the run's final/, report/ and so on. Follows links.

    None for a place of no run, a folder of the user's own beside those included.
    """
    real = Path(os.path.realpath(path))
    for parent in real.parents:
        run = RunFolder(parent)
        marked = is_there(str(run.record)) or is_there(str(parent / LOCK_FILE))
        if marked and run.writes(real.relative_to(parent).parts[0]):
            return run
    return None


def _check_place(path: Path) -> None:
    """Refuse a folder that is none, and one that another run would write over or delete."""
    if is_there(str(path)) and not is_folder(str(path)):
        raise UsageError(f"output_dir {path} is a file; name a folder")
    other = run_around(path)
    if other is not None:
        raise UsageError(
            f"output_dir {path} lies in a folder that the run {other.path} writes and deletes; choose another one"
        )


def _check_files(run: RunFolder) -> None:
    for file in (run.config, run.record, run.metrics, run.split, run.bad_samples):
        if os.path.lexists(file) and not file.is_file():
            raise CheckpointError(
                f"{file} is no regular file, but a folder, a pipe, a device or a link to nothing; put back what the run"
                " wrote"
            )
    if run.record.exists():
        read_sealed(run.record)


def _not_a_run(run: RunFolder) -> str:
    """The refusal of a folder whose files have a run's names and need not be a run's."""
    contents = run.contents()
    resume = " continue it with resume_from_checkpoint: latest," if run.checkpoints() else ""
    return (
        f"output_dir {run.path} already holds a run ({_names(contents)}) or files of its names, and no"
        f" {run.record.name}: it is perhaps not the folder of a run, and nothing in it is deleted, not with"
        f" overwrite_output_dir: true either;{resume} move these away, or choose another output_dir"
    )


def _how_to_start(run: RunFolder) -> str:
    contents = run.contents()
    if contents and not run.is_deletable():
        return f"leave the key out to start, and move {_names(contents)} away, or choose another output_dir"
    return "leave the key out to start" + (", with overwrite_output_dir: true" if contents else "")


def _names(paths: Sequence[Path]) -> str:
    """The names of the first few, in words."""
    return ", ".join(path.name for path in paths[:4])


def _move_aside(file: Path) -> None:
    numbers = (file.with_name(f"{file.name}.kept{number}") for number in ("", *map(str, range(2, 1000))))
    kept = next(path for path in numbers if not os.path.lexists(path))
    file.rename(kept)
    _log.warning("%s was not written by a run: it is kept as %s", file, kept.name)
