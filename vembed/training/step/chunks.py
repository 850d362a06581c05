"""How the rows of a batch become the inputs of chunks: which rows share one, and when they are prepared.

A side is cut by a number of rows, in order, or by a number of tokens: then rows that are alike in length share a chunk,
and the embeddings are put back into the order of the batch. Texts are prepared once per step; rows with pictures
whenever their chunk is run, for what is made of them is large. What a frozen tower gives for a chunk is kept, so that
it is run once per step; what it gives for every token is larger, and kept up to a limit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vembed.errors import UsageError
from vembed.grad_cache.cachex.budget import groups_within
from vembed.grad_cache.cachex.functional import ChunkedSide, num_retained
from vembed.grad_cache.cachex.tree_utils import select_rows, take_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.model.backbones.kept_pictures import PICTURE_STATES
from vembed.model.network.features import FEATURES
from vembed.types import Embeddings, HeldItem, Inputs, ItemRows, LoadedItem, Processor, Ragged

Side = Inputs | ItemRows
MADE = frozenset({*FEATURES.values(), PICTURE_STATES})  # the names of what frozen towers gave


@dataclass(frozen=True)
class Cut:
    """A side and the row numbers of each chunk of it: every row is in one, and each keeps the order of the side.

    most_tokens: of one row, where rows are cut by tokens.
    """

    side: Side
    rows: Sequence[Sequence[int]]
    most_tokens: int = 0

    def chunks_of(self, chosen: Tensor) -> list[int]:
        """The numbers, from 1, of the chunks with one of the chosen rows, bool [rows]."""
        return [number for number, rows in enumerate(self.rows, 1) if chosen[list(rows)].any()]

    @cached_property
    def chunks(self) -> list[Side]:
        """The side in these chunks, the same objects each time."""
        return [_taken(self.side, rows) for rows in self.rows]

    def chunked(self, encode: Callable[[Side], Embeddings]) -> ChunkedSide:
        """The side for the gradient cache; its embeddings are those of the chunks, one after the other."""
        return ChunkedSide(encode, self.chunks, max(map(len, self.rows)), split=lambda chunks, _: chunks)

    def in_order(self, embeddings: Embeddings) -> Embeddings:
        """The embeddings of all chunks, one after the other, in the order of the side."""
        places = torch.tensor([row for rows in self.rows for row in rows], dtype=torch.int64)
        if torch.equal(places, torch.arange(len(places))):
            return embeddings
        return select_rows(embeddings, places.argsort().to(embeddings.vectors.device))


def cut_side(side: Side, processor: Processor, settings: GradCacheSettings) -> Cut:
    """The chunks that the settings, without `auto`, ask for; a row over gradient_cache_chunk_tokens is one by itself.

    Raises UsageError for Inputs that are to be cut by tokens.
    """
    if not settings.use_gradient_cache:
        return Cut(side, [range(side.num_rows)])
    if settings.gradient_cache_chunk_tokens is None:
        size = settings.gradient_cache_chunk_size
        assert size != "auto"
        starts = range(0, max(side.num_rows, 1), size)
        return Cut(side, [range(start, min(start + size, side.num_rows)) for start in starts])
    if isinstance(side, Inputs):
        raise UsageError("gradient_cache_chunk_tokens: rows that are prepared already are padded; give ItemRows")
    most = settings.gradient_cache_chunk_tokens
    assert most != "auto"
    counts = processor.count_tokens(side.items, side.side)
    rows = [sorted(group) for group in groups_within(counts, most)]
    return Cut(side, rows or [range(0)], max(counts, default=0))


def cut_in_words(cuts: Sequence[Cut], settings: GradCacheSettings) -> str:
    """What a batch is cut into: its queries, then its documents.

    >>> side, settings = Inputs(6, {}), GradCacheSettings(gradient_cache_chunk_size=2, gradient_cache_retain=0.4)
    >>> cut_in_words([Cut(side, [range(3), range(3, 6)])] * 2, settings)
    '2 chunks of queries and 2 of documents, of up to 2 rows; 1 of these 4 needs no second forward'
    >>> cut_in_words([Cut(side, [range(6)])] * 2, settings)
    'one chunk: the plain step, no second forward'
    """
    queries, documents = (len(cut.rows) for cut in cuts)
    total = queries + documents
    if total == len(cuts):
        return "one chunk: the plain step, no second forward"
    kept = num_retained(total, retain_of(settings))
    tokens = settings.gradient_cache_chunk_tokens
    size = f"{settings.gradient_cache_chunk_size} rows" if tokens is None else f"{tokens:,} tokens"
    need = "needs" if kept == 1 else "need"
    return (
        f"{queries} chunks of queries and {documents} of documents, of up to {size};"
        f" {kept} of these {total} {need} no second forward"
    )


def retain_of(settings: GradCacheSettings) -> float:
    """The share of chunks that keep their graphs, of settings without `auto`."""
    assert settings.gradient_cache_retain != "auto"
    return settings.gradient_cache_retain or 0.0


def _taken(side: Side, rows: Sequence[int]) -> Side:
    if isinstance(rows, range):
        return side if len(rows) == side.num_rows else take_rows(side, rows.start, rows.stop)
    return select_rows(side, torch.tensor(rows, dtype=torch.int64))


class ChunkReader:
    """Prepares the chunks of one step. Those without pictures are prepared once and kept, for tokens are small.

    most_state_bytes: of what frozen towers give for every token, as much is kept (the last chunk may go over it).
    """

    def __init__(self, processor: Processor, most_state_bytes: int = 0) -> None:
        self._processor = processor
        self._room = most_state_bytes
        self._kept: dict[ItemRows, Inputs] = {}
        self._num_truncated: dict[ItemRows, int] = {}
        self._left: dict[ItemRows, tuple[Sequence[HeldItem], Mapping[str, Ragged]]] = {}
        self._fixed: dict[int, tuple[Inputs, Inputs]] = {}  # by id of the first, which lives as long as this

    def __call__(self, chunk: Side) -> Inputs:
        """The chunk's inputs, on the host; with the features that are kept of it, finished and wherever those are."""
        if isinstance(chunk, Inputs):
            return self._fixed.get(id(chunk), (chunk, chunk))[1]  # whose texts were counted when they were cut
        if chunk in self._kept:
            return self._kept[chunk]
        items, features = self._left.get(chunk, (chunk.items, {}))
        inputs = self._processor.prepare(items, chunk.side)
        self._num_truncated.setdefault(chunk, inputs.num_truncated)
        inputs = replace(inputs, tensors={**inputs.tensors, **features})
        if not any(item.images for item in items):
            self._kept[chunk] = inputs
        return inputs

    @property
    def has_room(self) -> bool:
        """Whether more of what frozen towers give for every token may be kept."""
        return self._room > 0

    def keep(self, chunk: Side, read: Inputs, fixed: Inputs) -> None:
        """Give the features in `fixed` from now on, and prepare no more what they stand for.

        read: the chunk's finished inputs. fixed: the same with features (vembed.model.network.freezing).
        """
        gone = read.tensors.keys() - fixed.tensors.keys()
        if not gone:
            return
        features = {name: tensor for name, tensor in fixed.tensors.items() if name not in read.tensors}
        self._room -= sum(ragged.values.nbytes for name, ragged in features.items() if name in MADE)
        if isinstance(chunk, Inputs):
            if "pixel_values" not in fixed.tensors:  # floats of pictures exist for one chunk only
                self._fixed[id(chunk)] = chunk, fixed
            return
        items, known = self._left.get(chunk, (chunk.items, {}))
        left = [_without(item, text="input_ids" in gone, images="pixel_values" in gone) for item in items]
        self._left[chunk] = left, {**known, **features}
        self._kept.pop(chunk, None)
        if not any(item.images for item in left):
            self._kept[chunk] = fixed  # texts too, of which some were read together with the pictures

    @property
    def num_truncated(self) -> int:
        """Texts that were cut to the model's limit, in all chunks that were prepared here, each counted once."""
        return sum(self._num_truncated.values())


def _without(item: HeldItem, *, text: bool, images: bool) -> HeldItem:
    """The item without its text, its images, or both."""
    kept = None if text else item.text
    if isinstance(item, LoadedItem):
        return replace(item, text=kept, images=() if images else item.images)
    if images:
        return LoadedItem(kept, (), item.content_hash, item.draw, item.origin)
    return replace(item, item=replace(item.item, text=kept))
