"""What `vembed encode` does: embed texts and images of a file or folder, and write the vectors with their ids.

vembed encode MODEL --input photos/ --output photos.npz
"""

from dataclasses import dataclass
from pathlib import Path

from vembed.errors import UsageError
from vembed.inference import Predictor
from vembed.retrieval.encode import Encoding, ItemEncoder, Progress
from vembed.retrieval.items_file import read_items
from vembed.retrieval.vectors_file import NamedVectors, check_vectors_path, write_vectors
from vembed.types import Side


@dataclass(frozen=True)
class EncodeResult:
    """What was written, and where."""

    path: Path
    num_items: int
    dim: int

    def text(self) -> str:
        """The result for a terminal."""
        return f"{self.num_items:,} vectors of {self.dim} numbers in {self.path}"


@dataclass(frozen=True)
class EncodeRequest:
    """Which model embeds what, and how. side: whose prompt texts get, "query" or "document"."""

    model: str
    items: Path
    output: Path
    side: Side = "document"
    width: int | None = None
    batch_size: int = 64
    device: str = "auto"


def encode(request: EncodeRequest, progress: Progress | None = None) -> EncodeResult:
    """Embed and write. Everything that can be checked beforehand is, so that no work is lost.

    Raises UsageError, DataError naming the item that cannot be read, ModelError for what the model cannot take.
    """
    if request.side not in ("query", "document"):
        raise UsageError(f"side {request.side!r} is unknown; known are: query, document")
    check_vectors_path(request.output)
    named = read_items(request.items)
    model = Predictor(request.model, request.device).model
    encoder = ItemEncoder(model, Encoding(request.batch_size, request.width), progress)
    vectors = encoder.encode([one.item for one in named], side=request.side).vectors.numpy()
    write_vectors(request.output, NamedVectors([one.name for one in named], vectors))
    return EncodeResult(request.output, len(named), vectors.shape[1])
