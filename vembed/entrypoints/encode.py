"""The work of `vembed encode`: embed texts and images of a file or folder, and write the vectors with their ids.

vembed encode MODEL --input photos/ --output photos.npz
"""

from dataclasses import dataclass, field
from pathlib import Path

from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import DataError, UsageError
from vembed.inference import Predictor
from vembed.model.encoding import EncodeOptions
from vembed.retrieval.encode_file import FileEncoder, LeftOut, OnBadSample, Progress
from vembed.retrieval.items_file import files_of_input, open_items
from vembed.retrieval.vectors_file import bad_samples_path, check_vectors_path, open_vectors, written_paths
from vembed.types import Side
from vembed.utils.untrusted import is_folder, is_there


@dataclass(frozen=True)
class EncodeResult:
    """The file that was written, the number and size of its vectors, and the number of items that were left out."""

    path: Path
    num_items: int
    num_vectors: int
    dim: int
    num_left_out: int = 0

    def text(self) -> str:
        """The result for a terminal."""
        of = f" for {self.num_items:,} items" if self.num_vectors != self.num_items else ""
        written = f"{self.num_vectors:,} vectors of {self.dim} numbers{of} in {self.path}"
        if not self.num_left_out:
            return written
        items = f"{self.num_left_out:,} item{'s' if self.num_left_out > 1 else ''} that cannot be used"
        return f"{written}\n{items} left out and listed in {bad_samples_path(self.path)}"


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """The model, the items to embed, the file to write, and how. side: whose prompt texts get, query or document.

    on_bad_sample: what an item that cannot be read does, "raise" or "skip"; with skip, more than max_bad_fraction of
    all stop the work.
    """

    model: str
    items: Path
    output: Path
    side: Side = "document"
    width: int | None = None
    batch_size: int = 64
    device: str = "auto"
    on_bad_sample: OnBadSample = "raise"
    max_bad_fraction: float = 1.0
    load_options: LoadOptions = field(default_factory=LoadOptions)


def encode(request: EncodeRequest, progress: Progress | None = None) -> EncodeResult:
    """Embed and write. Everything that can be checked beforehand is, so that no work is lost.

    Raises UsageError, DataError naming the item that cannot be read, ModelError for what the model cannot take.
    """
    _check(request)
    settings = request.load_options.settings
    request.load_options.import_plugins()
    items = open_items(request.items)
    if request.on_bad_sample == "raise":
        items.check()
    items.check_ids()
    model = Predictor(request.model, request.device, settings=settings).model
    left_out = LeftOut(request.on_bad_sample, request.max_bad_fraction, len(items))
    options = EncodeOptions(request.side, request.batch_size, request.width)
    with open_vectors(request.output, per_token=model.spec.scoring != "single") as writer:
        FileEncoder(model, options, writer, left_out).encode(items, progress)
        if not writer.num_rows:
            raise DataError(f"none of the {len(items)} items can be used; the last: {left_out.lines[-1]['reason']}")
    left_out.write(bad_samples_path(request.output))
    return EncodeResult(request.output, writer.num_rows, *writer.shape, len(left_out.lines))


def _check(request: EncodeRequest) -> None:
    if request.side not in ("query", "document"):
        raise UsageError(f"side {request.side!r} is unknown; known are: query, document")
    if request.on_bad_sample not in ("raise", "skip"):
        raise UsageError(f"on_bad_sample {request.on_bad_sample!r} is unknown; known are: raise, skip")
    if not 0 <= request.max_bad_fraction <= 1:
        raise UsageError(f"max_bad_fraction {request.max_bad_fraction}: should be from 0 to 1")
    if request.on_bad_sample == "raise" and request.max_bad_fraction != 1:
        raise UsageError("max_bad_fraction has an effect only with on_bad_sample skip")
    check_vectors_path(request.output)
    _refuse_to_overwrite(request)


def _refuse_to_overwrite(request: EncodeRequest) -> None:
    """Raise UsageError for an output, or a file beside it, that is what is read: the items or the model's weights."""
    read = [path for path in files_of_input(request.items) if is_there(str(path))]
    for path in (one for one in written_paths(request.output) if is_there(str(one))):
        if any(path.samefile(one) for one in read):
            raise UsageError(
                f"output {request.output}: {path} would be written over, and is the input; name another file"
            )
        if path.suffix.lower() == ".safetensors" and _is_inside(path, request.model):
            raise UsageError(f"output {path}: is there already, in the model's own folder; name a file elsewhere")


def _is_inside(path: Path, model: str) -> bool:
    return is_folder(model) and path.resolve().is_relative_to(Path(model).resolve())
