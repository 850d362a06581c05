"""The work of `vembed encode`: embed texts and images of a file or folder, and write the vectors with their ids.

vembed encode MODEL --input photos/ --output photos.npz
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import UsageError
from vembed.inference import Predictor
from vembed.retrieval.encode import Encoding, ItemEncoder, Progress
from vembed.retrieval.items_file import read_items
from vembed.retrieval.vectors_file import NamedVectors, check_vectors_path, write_vectors
from vembed.types import Embeddings, Ragged, Side


@dataclass(frozen=True)
class EncodeResult:
    """The file that was written, and the number and size of its vectors."""

    path: Path
    num_items: int
    num_vectors: int
    dim: int

    def text(self) -> str:
        """The result for a terminal."""
        of = f" for {self.num_items:,} items" if self.num_vectors != self.num_items else ""
        return f"{self.num_vectors:,} vectors of {self.dim} numbers{of} in {self.path}"


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """The model, the items to embed, the file to write, and how. side: whose prompt texts get, query or document."""

    model: str
    items: Path
    output: Path
    side: Side = "document"
    width: int | None = None
    batch_size: int = 64
    device: str = "auto"
    load_options: LoadOptions = field(default_factory=LoadOptions)


def encode(request: EncodeRequest, progress: Progress | None = None) -> EncodeResult:
    """Embed and write. Everything that can be checked beforehand is, so that no work is lost.

    Raises UsageError, DataError naming the item that cannot be read, ModelError for what the model cannot take.
    """
    if request.side not in ("query", "document"):
        raise UsageError(f"side {request.side!r} is unknown; known are: query, document")
    settings = request.load_options.settings
    check_vectors_path(request.output)
    request.load_options.import_plugins()
    named = read_items(request.items)
    model = Predictor(request.model, request.device, settings=settings).model
    check_vectors_path(request.output, per_token=model.spec.scoring != "single")
    encoder = ItemEncoder(model, Encoding(request.batch_size, request.width), progress)
    embeddings = encoder.encode([one.item for one in named], side=request.side)
    vectors = named_vectors([one.name for one in named], embeddings)
    write_vectors(request.output, vectors)
    return EncodeResult(request.output, len(named), *vectors.vectors.shape)


def named_vectors(names: Sequence[str], embeddings: Embeddings | Ragged) -> NamedVectors:
    """Embeddings on the CPU with the names of their rows; those of tokens one after the other, and counted."""
    if isinstance(embeddings, Ragged):
        return NamedVectors(names, embeddings.values.numpy(), embeddings.counts.numpy())
    return NamedVectors(names, embeddings.vectors.numpy())
