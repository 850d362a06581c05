"""What `vembed export` does: write the plain model of a checkpoint, for tools that know nothing of adapters.

vembed export output/checkpoint-100 --merge --output merged
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.configuration.layers import Setting, import_plugins
from vembed.entrypoints.opening import opening_settings
from vembed.errors import UsageError
from vembed.model.export import merge_folder
from vembed.utils.files import atomic_folder


@dataclass(frozen=True)
class ExportRequest:
    """What is exported, how, and where to. torch_dtype: in which the weights are merged and written.

    plugins: modules to import first, which may bring families.
    """

    model: str
    output: Path
    merge: bool = False
    torch_dtype: str = "float32"
    trust_remote_code: bool = False
    plugins: Sequence[str] = ()
    allow_pickled_weights: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

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
    settings = opening_settings(
        torch_dtype=request.torch_dtype,
        trust_remote_code=request.trust_remote_code,
        allow_pickled_weights=request.allow_pickled_weights,
    )
    if request.output.exists():
        raise UsageError(f"--output {request.output} is there already; name a new folder")
    import_plugins({"plugins": Setting(list(request.plugins), "--plugins")})
    with atomic_folder(request.output) as new:
        model = merge_folder(request.model, new, settings)
    size = sum(file.stat().st_size for file in request.output.rglob("*") if file.is_file())
    return ExportResult(request.output, model.spec.family, size)
