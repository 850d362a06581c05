"""Divides the sides of a batch into chunks: of a number of rows, in order, or of a number of tokens.

By tokens, rows of similar length share a chunk, and the embeddings are put back into the order of the side.
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
from vembed.types import Batch, Embeddings, Inputs, ItemRows, Processor

Side = Inputs | ItemRows


@dataclass(frozen=True)
class Chunking:
    """The sizes of chunks, and how much of them is kept between their two forwards: the settings, without `auto`.

    chunk_size: the most rows of a chunk. chunk_tokens: the most tokens, padding counted. One of both is given, or none:
    then the gradient cache is off, and a side is one chunk. retain: the share of all chunks that keep their graphs, the
    last ones. max_hidden_state_bytes: the limit of the frozen towers' hidden states that are kept.
    """

    chunk_size: int | None = None
    chunk_tokens: int | None = None
    retain: float = 0.0
    max_hidden_state_bytes: int = 0

    @property
    def is_on(self) -> bool:
        """True if the gradient cache is on; else each side is one chunk."""
        return self.chunk_size is not None or self.chunk_tokens is not None

    @property
    def limit(self) -> str:
        """The most that a chunk holds, in words.

        >>> Chunking(chunk_size=32).limit, Chunking(chunk_tokens=4096).limit
        ('32 rows', '4,096 tokens')
        """
        return f"{self.chunk_size} rows" if self.chunk_tokens is None else f"{self.chunk_tokens:,} tokens"


@dataclass(frozen=True)
class SidePartition:
    """A side and the row numbers of each chunk of it: every row is in one, and each keeps the order of the side.

    max_row_tokens: tokens of the longest row, where chunks are limited by tokens; else 0.
    """

    side: Side
    rows: Sequence[Sequence[int]]
    max_row_tokens: int = 0

    def chunks_with(self, chosen: Tensor) -> list[int]:
        """The numbers, from 1, of the chunks with one of the chosen rows, bool [rows]."""
        return [number for number, rows in enumerate(self.rows, 1) if chosen[list(rows)].any()]

    @cached_property
    def chunks(self) -> list[Side]:
        """The rows of each chunk; the same objects each time, by which ChunkReader knows them again."""
        return [_select(self.side, rows) for rows in self.rows]

    def with_encoder(self, encode: Callable[[Side], Embeddings]) -> ChunkedSide:
        """The side for the gradient cache. Its embeddings come in the order of the chunks: see `restore_order`."""
        return ChunkedSide(encode, self.chunks, max(map(len, self.rows)), split=lambda chunks, _: chunks)

    def restore_order(self, embeddings: Embeddings) -> Embeddings:
        """The embeddings [rows, ...] of all chunks, concatenated, brought into the order of the side."""
        order = torch.tensor([row for rows in self.rows for row in rows], dtype=torch.int64)  # [rows]
        if torch.equal(order, torch.arange(len(order))):
            return embeddings
        return select_rows(embeddings, order.argsort().to(embeddings.vectors.device))


def chunk_batch(batch: Batch, processor: Processor, chunking: Chunking) -> tuple[SidePartition, SidePartition]:
    """The chunks of both sides: the queries, the documents."""
    return chunk_side(batch.queries, processor, chunking), chunk_side(batch.documents, processor, chunking)


def chunk_side(side: Side, processor: Processor, chunking: Chunking) -> SidePartition:
    """The chunks of a side; a row with more tokens than a chunk may have is one by itself.

    Raises UsageError for Inputs that are to be chunked by tokens.
    """
    if chunking.chunk_tokens is not None:
        return _chunk_by_tokens(side, processor, chunking.chunk_tokens)
    if chunking.chunk_size is None:
        return SidePartition(side, [range(side.num_rows)])
    size = chunking.chunk_size
    starts = range(0, max(side.num_rows, 1), size)
    return SidePartition(side, [range(start, min(start + size, side.num_rows)) for start in starts])


def describe_chunks(partitions: Sequence[SidePartition], chunking: Chunking) -> str:
    """A batch's chunks in words; partitions: of its queries, and of its documents.

    >>> side, chunking = Inputs(6, {}), Chunking(chunk_size=3, retain=0.4)
    >>> describe_chunks([SidePartition(side, [range(3), range(3, 6)])] * 2, chunking)
    'a batch of 6 rows is 2 chunks of queries and 2 of documents, of up to 3 rows; 1 of these 4 needs no second forward'
    >>> describe_chunks([SidePartition(side, [range(6)])] * 2, chunking)
    'a batch of 6 rows is one chunk: the plain step, no second forward'
    """
    batch = f"a batch of {partitions[0].side.num_rows} rows"
    queries, documents = (len(partition.rows) for partition in partitions)
    total = queries + documents
    if total == len(partitions):
        return f"{batch} is one chunk: the plain step, no second forward"
    kept = num_retained(total, chunking.retain)
    need = "needs" if kept == 1 else "need"
    return (
        f"{batch} is {queries} chunks of queries and {documents} of documents, of up to {chunking.limit};"
        f" {kept} of these {total} {need} no second forward"
    )


def _chunk_by_tokens(side: Side, processor: Processor, most: int) -> SidePartition:
    if isinstance(side, Inputs):
        raise UsageError("gradient_cache_chunk_tokens: rows that are prepared already are padded; give ItemRows")
    counts = processor.count_tokens(side.items, side.side)
    rows = [sorted(group) for group in groups_within(counts, most)]
    return SidePartition(side, rows or [range(0)], max(counts, default=0))


def _select(side: Side, rows: Sequence[int]) -> Side:
    if isinstance(rows, range):
        return side if len(rows) == side.num_rows else take_rows(side, rows.start, rows.stop)
    return select_rows(side, torch.tensor(rows, dtype=torch.int64))
