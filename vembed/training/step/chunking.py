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
from vembed.types import Batch, Embeddings, Inputs, ItemRows, Processor

Side = Inputs | ItemRows


@dataclass(frozen=True)
class Chunking:
    """How the sides of a batch are divided into chunks, and what is kept of these.

    chunk_size: the most rows of a chunk. chunk_tokens: the most tokens, padding counted. One of both is given, or none:
    then the gradient cache is off, and a side is one chunk. retain: the share of all chunks that keep their graphs, the
    last ones. most_state_bytes: of what frozen towers give for every token, as much is kept for the second forward.
    """

    chunk_size: int | None = None
    chunk_tokens: int | None = None
    retain: float = 0.0
    most_state_bytes: int = 0

    @property
    def is_on(self) -> bool:
        """Whether sides are divided at all."""
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
        places = torch.tensor([row for rows in self.rows for row in rows], dtype=torch.int64)  # [rows]
        if torch.equal(places, torch.arange(len(places))):
            return embeddings
        return select_rows(embeddings, places.argsort().to(embeddings.vectors.device))


def chunk_batch(batch: Batch, processor: Processor, chunking: Chunking) -> tuple[SidePartition, SidePartition]:
    """The chunks of both sides: the queries, the documents."""
    return chunk_side(batch.queries, processor, chunking), chunk_side(batch.documents, processor, chunking)


def chunk_side(side: Side, processor: Processor, chunking: Chunking) -> SidePartition:
    """The chunks of a side; a row with more tokens than a chunk may have is one by itself.

    Raises UsageError for Inputs that are to be chunked by tokens.
    """
    if chunking.chunk_tokens is not None:
        return _by_tokens(side, processor, chunking.chunk_tokens)
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


def _by_tokens(side: Side, processor: Processor, most: int) -> SidePartition:
    if isinstance(side, Inputs):
        raise UsageError("gradient_cache_chunk_tokens: rows that are prepared already are padded; give ItemRows")
    counts = processor.count_tokens(side.items, side.side)
    rows = [sorted(group) for group in groups_within(counts, most)]
    return SidePartition(side, rows or [range(0)], max(counts, default=0))


def _taken(side: Side, rows: Sequence[int]) -> Side:
    if isinstance(rows, range):
        return side if len(rows) == side.num_rows else take_rows(side, rows.start, rows.stop)
    return select_rows(side, torch.tensor(rows, dtype=torch.int64))
