"""Which of a folder's files is to blame when a library could not read them: asked afterwards, since it takes time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vembed.errors import ModelError, VembedError
from vembed.model.folder.find import read_json
from vembed.model.folder.tensors import read_entries
from vembed.utils.untrusted import is_folder, library_errors

SPEC_FILES = (
    "config.json",
    "tokenizer_config.json",
    "*processor_config.json",
    "modules.json",
    "*sentence*.json",
    "*/config.json",
    "vembed_*.json",
    "artifact.metadata",
)
WEIGHT_FILES = ("config.json", "*.safetensors", "*.bin", "*.index.json")
PROCESSOR_FILES = (
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*processor_config.json",
    "*.jinja",
    "config.json",
)
MODEL_FILES = (*SPEC_FILES, *PROCESSOR_FILES)


class _Unexplained(ModelError):
    """What a library said, before the file is found that it is about."""


@contextmanager
def files_to_blame(name: str, what: str, patterns: Sequence[str]) -> Iterator[None]:
    """Turns what a library raises in this block into a ModelError: `what`, its words, and the files of a local folder.

    name: of the model, a folder or a hub id.
    """
    try:
        with library_errors(_Unexplained, what):
            yield
    except _Unexplained as error:
        folder = Path(name)
        found = with_files(str(error), folder, patterns) if is_folder(name) else str(error)
        raise ModelError(found) from error.__cause__


def with_files(message: str, folder: Path, patterns: Sequence[str]) -> str:
    """The message with the file that is broken, or with those that it can have been about."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    broken = next(_broken(paths), None)
    if broken is not None:
        return message if broken in message else f"{message} ({broken})"
    names = ", ".join(path.name for path in paths) or "none of its files is there"
    return f"{message} (it was read from {names})"


def _broken(paths: Sequence[Path]) -> Iterator[str]:
    """What is wrong with the files that are not what their endings say."""
    for path in paths:
        try:
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".safetensors":
                entries = read_entries(path)
                if path.stat().st_size < max((entry.end for entry in entries.values()), default=0):
                    yield f"{path} is damaged or cut short; copy or download it again"
        except VembedError as error:
            yield str(error)
