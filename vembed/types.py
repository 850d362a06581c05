"""The values that flow through the package: items, examples, inputs, embeddings, targets, batches. No work here.

A row is one input line or, of a tensor, one item of a side; queries and documents are the two sides of a score. A slice
is one entry of a tensor's first axis: a row may own none (no image), one, or several (three images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray
    from torch import Tensor

Side = Literal["query", "document"]


@dataclass(frozen=True)
class ImageSource:
    """The source of one image: exactly one of a file path, encoded bytes, or a PIL image."""

    path: str | None = None
    data: bytes | None = None
    pil: PIL.Image.Image | None = None
    origin: str = ""


@dataclass(frozen=True)
class Item:
    """One thing to embed: text, one or more images, or both. `origin` says where it came from ("train.jsonl:17")."""

    text: str | None = None
    images: tuple[ImageSource, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class LoadedItem:
    """An Item whose images are decoded to what the model takes, at its resolution, without a rows axis.

    `images`: tensors by name, a mapping for each image, or of a vision-language model one for all. Pixels are uint8, or
    float32 where normalisation cannot be put off. `content_hash` is an int64 of text and image
    bytes; `draw` tells apart random augmentations of the same content (0: none).
    """

    text: str | None
    images: tuple[Mapping[str, Tensor], ...]
    content_hash: int
    draw: int = 0
    origin: str = ""


@dataclass(frozen=True, eq=False)
class RowEmbeddings:
    """A teacher's embeddings of one row: float32 [dim] of its query, [documents, dim] of positives, then negatives."""

    query: NDArray[np.float32]
    documents: NDArray[np.float32]


@dataclass(frozen=True)
class EncodedItem:
    """An Item whose images are held as the bytes of their files, and decoded anew whenever they are needed.

    Each picture goes through `transform` after decoding, the same each time. `content_hash`, `draw`: as a LoadedItem's.
    """

    item: Item
    content_hash: int
    draw: int = 0
    transform: ImageTransform | None = None

    @property
    def text(self) -> str | None:
        """The item's text."""
        return self.item.text

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The item's images, encoded."""
        return self.item.images

    @property
    def origin(self) -> str:
        """The item's origin, as in "train.jsonl:17"."""
        return self.item.origin


HeldItem = LoadedItem | EncodedItem
AnyItem = Item | HeldItem


@dataclass(frozen=True)
class Example:
    """One row: a query, its relevant documents (one or more), its explicit negatives, and its group.

    ignored: documents that are neither for this query. scores: of the positives, then the negatives, or none.
    embeddings: a teacher's, if rows bring them.
    """

    query: Item
    positives: tuple[Item, ...]
    negatives: tuple[Item, ...] = ()
    group: int | None = None
    origin: str = ""
    ignored: tuple[Item, ...] = ()
    scores: tuple[float, ...] = ()
    embeddings: RowEmbeddings | None = None


@dataclass(frozen=True)
class RowNeeds:
    """The needs of a loss in every row: explicit negatives; a group; a score of its documents, any number or 0 and 1.

    scores "unread": the loss takes every positive as relevant, whatever its score, so that none may say otherwise.
    embeddings: those of a teacher. num_documents: as many positives and negatives at least. scores_say_relevance: in
    evaluation a score of 0 or below says that a positive is none; a teacher's says nothing of that.
    """

    negatives: bool = False
    groups: bool = False
    scores: Literal["none", "any", "binary", "unread"] = "none"
    embeddings: bool = False
    num_documents: int = 1
    scores_say_relevance: bool = True


@dataclass(frozen=True)
class LoadedExample:
    """An Example with its items in memory, decoded or as the bytes of their files.

    ignored: content hashes. query_image: the query's pictures alone, where they are to be one more negative.
    left_out: why documents that the row names are not among its own.
    """

    query: HeldItem
    positives: tuple[HeldItem, ...]
    negatives: tuple[HeldItem, ...] = ()
    group: int | None = None
    origin: str = ""
    ignored: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    query_image: HeldItem | None = None
    embeddings: RowEmbeddings | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ragged:
    """A tensor whose first axis holds slices, and how many of them each row owns, in row order.

    values: [slices, ...]; counts: int64 [rows], each >= 0, summing to the number of slices.
    """

    values: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model: named ragged tensors over the same rows.

    `num_truncated` counts texts that were cut to the model's length limit.
    """

    num_rows: int
    tensors: Mapping[str, Ragged]
    num_truncated: int = 0


@dataclass(frozen=True, eq=False)
class ItemRows:
    """Rows that become Inputs chunk by chunk, so that no stack of all their pictures ever exists; one item a row.

    Two of them are equal only if they are the same object: pictures are tensors, which cannot be asked for it.
    """

    items: tuple[HeldItem, ...]
    side: Side

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.items)


@dataclass(frozen=True)
class Embeddings:
    """Vectors [rows, dim], or [rows, tokens, dim] with their mask, bool [rows, tokens], True for real tokens."""

    vectors: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Sides:
    """Embeddings of a batch's queries and of its documents, in its order: by the model, a teacher or a reference."""

    queries: Embeddings
    documents: Embeddings


NO_GROUP = -1  # in the place of a group's key, of a row or document without one


@dataclass(frozen=True)
class Targets:
    """The targets of a batch: which document belongs to which query, as int64 keys; masks are made of them in strips.

    Columns number the documents of the batch. Group -1 means "no group".

    query_groups, query_hashes: [queries]. document_groups, document_hashes: [documents].
    positives, negatives: explicit columns per query (values [pairs], counts [queries]).
    ignored: per query the content hashes that are neither. scored, scores: per query the columns that its row gives a
    score, and the scores (float), the row's positives first. teacher, reference: embeddings of the model that is
    learned from, and of the model as it was before training; without a graph. document_draws: [documents], which of
    the random augmentations of its content a document is; None: no augmentations.
    """

    query_groups: Tensor
    query_hashes: Tensor
    document_groups: Tensor
    document_hashes: Tensor
    positives: Ragged
    negatives: Ragged
    ignored: Ragged | None = None
    scored: Ragged | None = None
    scores: Ragged | None = None
    teacher: Sides | None = None
    reference: Sides | None = None
    document_draws: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """The queries and documents of one loss with their targets. `origins` names the row of each query.

    Sides are ItemRows, which are prepared a chunk at a time, or Inputs that are prepared already.
    """

    queries: Inputs | ItemRows
    documents: Inputs | ItemRows
    targets: Targets
    origins: tuple[str, ...] = field(default=())


class ImageTransform(Protocol):
    """A random or fixed change of a decoded RGB picture, made before the model's own resizing."""

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image: ...


class Processor(Protocol):
    """Turns items into a model's inputs, in three moves that can run in three places.

    load (loader worker): decode and resize one item's images. prepare (host, per chunk): tokenise and stack to uint8
    Inputs. finish (device, per chunk): cast to float, rescale and normalise. count_tokens: how long each row would be.
    """

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem: ...

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs: ...

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]: ...

    def finish(self, inputs: Inputs) -> Inputs: ...
