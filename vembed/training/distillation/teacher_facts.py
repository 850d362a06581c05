"""The facts of a teacher that are kept beside its embeddings, so that it need not be opened to know them."""

from dataclasses import dataclass
from pathlib import Path

from vembed.errors import CheckpointError
from vembed.model.spec import ModelSpec
from vembed.utils.files import disk_errors
from vembed.utils.sealed import CHECKSUM, read_object, read_sealed, write_sealed
from vembed.utils.untrusted import is_there, library_errors
from vembed.version import __version__

_RECORD = "teacher.json"


@dataclass(frozen=True)
class TeacherFacts:
    """The facts of a teacher that are known without its weights. temperature: that its scores are divided by."""

    spec: ModelSpec
    dim: int
    temperature: float


def write_teacher_facts(folder: Path, name: str, facts: TeacherFacts) -> None:
    """Write the facts of the teacher of this name into its folder, unless they are there."""
    if _is_sealed(folder / _RECORD):
        return
    record = {
        "model": name,
        "version": __version__,
        "spec": facts.spec.model_dump(mode="json"),
        "dim": facts.dim,
        "temperature": facts.temperature,
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / _RECORD, record)


def read_teacher_facts(folder: Path, spec: ModelSpec) -> TeacherFacts | None:
    """The facts that the folder holds, None where it holds none. Raises CheckpointError when they are damaged."""
    file = folder / _RECORD
    if not _is_sealed(file):
        return None
    try:
        record = read_sealed(file)
        with library_errors(CheckpointError, f"{file} is damaged"):
            return TeacherFacts(spec, int(record["dim"]), float(record["temperature"]))
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Delete it, and it is made anew") from error


def _is_sealed(record: Path) -> bool:
    """True if the file is there and has a checksum; one of an earlier version is made anew. Raises CheckpointError."""
    try:
        return is_there(str(record)) and CHECKSUM in read_object(record)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Delete it, and it is made anew") from error
