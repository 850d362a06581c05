"""The work of `vembed export`: write the plain model of a checkpoint, for tools that know nothing of adapters.

vembed export output/checkpoint-100 --merge --output merged
"""

from dataclasses import dataclass, field
from pathlib import Path

from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import UsageError
from vembed.model.export import merge_folder
from vembed.utils.files import atomic_folder
from vembed.utils.untrusted import is_there


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The model to export, how, and where to. The dtype it is opened in is the one it is merged and written in."""

    model: str
    output: Path
    merge: bool = False
    load_options: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True)
class ExportResult:
    """The folder that was written, the model's family, and its size."""

    path: Path
    family: str
    num_bytes: int

    def text(self) -> str:
        """The result for a terminal."""
        return f"a {self.family} model of {self.num_bytes / 1e6:,.1f} MB in {self.path}"


def export(request: ExportRequest) -> ExportResult:
    """Write the model; what is there already is never written over. Raises UsageError, ModelError, CheckpointError."""
    if not request.merge:
        raise UsageError("say what to write: --merge writes plain weights with the adapters merged in")
    settings = request.load_options.settings
    if is_there(str(request.output)):
        raise UsageError(f"--output {request.output} is there already; name a new folder")
    request.load_options.import_plugins()
    with atomic_folder(request.output) as new:
        model = merge_folder(request.model, new, settings)
    size = sum(file.stat().st_size for file in request.output.rglob("*") if file.is_file())
    return ExportResult(request.output, model.spec.family, size)
