"""How a side is divided into chunks: by a number of rows, in order, or by a number of tokens.

By tokens, rows that are alike in length share a chunk, and the embeddings are put back into the order of the side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vembed.errors import UsageError
from vembed.grad_cache.cachex.budget import groups_within
from vembed.grad_cache.cachex.functional import ChunkedSide, num_retained
from vembed.grad_cache.cachex.tree_utils import select_rows, take_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.types import Embeddings, Inputs, ItemRows, Processor

Side = Inputs | ItemRows


@dataclass(frozen=True)
class SidePartition:
    """A side and the row numbers of each chunk of it: every row is in one, and each keeps the order of the side.

    most_tokens: of one row, where chunks are limited by tokens.
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

    def with_encoder(self, encode: Callable[[Side], Embeddings]) -> ChunkedSide:
        """The side for the gradient cache; its embeddings are those of the chunks, one after the other."""
        return ChunkedSide(encode, self.chunks, max(map(len, self.rows)), split=lambda chunks, _: chunks)

    def in_order(self, embeddings: Embeddings) -> Embeddings:
        """The embeddings of all chunks, one after the other, in the order of the side."""
        places = torch.tensor([row for rows in self.rows for row in rows], dtype=torch.int64)
        if torch.equal(places, torch.arange(len(places))):
            return embeddings
        return select_rows(embeddings, places.argsort().to(embeddings.vectors.device))


def chunk_side(side: Side, processor: Processor, settings: GradCacheSettings) -> SidePartition:
    """The chunks that the settings, without `auto`, ask for; a row over gradient_cache_chunk_tokens is one by itself.

    Raises UsageError for Inputs that are to be chunked by tokens.
    """
    if not settings.use_gradient_cache:
        return SidePartition(side, [range(side.num_rows)])
    if settings.gradient_cache_chunk_tokens is None:
        size = settings.gradient_cache_chunk_size
        assert size != "auto"
        starts = range(0, max(side.num_rows, 1), size)
        return SidePartition(side, [range(start, min(start + size, side.num_rows)) for start in starts])
    if isinstance(side, Inputs):
        raise UsageError("gradient_cache_chunk_tokens: rows that are prepared already are padded; give ItemRows")
    most = settings.gradient_cache_chunk_tokens
    assert most != "auto"
    counts = processor.count_tokens(side.items, side.side)
    rows = [sorted(group) for group in groups_within(counts, most)]
    return SidePartition(side, rows or [range(0)], max(counts, default=0))


def describe_chunks(partitions: Sequence[SidePartition], settings: GradCacheSettings) -> str:
    """The chunks of a batch in words; partitions: of its queries, then of its documents.

    >>> side, settings = Inputs(6, {}), GradCacheSettings(gradient_cache_chunk_size=2, gradient_cache_retain=0.4)
    >>> describe_chunks([SidePartition(side, [range(3), range(3, 6)])] * 2, settings)
    '2 chunks of queries and 2 of documents, of up to 2 rows; 1 of these 4 needs no second forward'
    >>> describe_chunks([SidePartition(side, [range(6)])] * 2, settings)
    'one chunk: the plain step, no second forward'
    """
    queries, documents = (len(partition.rows) for partition in partitions)
    total = queries + documents
    if total == len(partitions):
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
