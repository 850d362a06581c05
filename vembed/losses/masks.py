"""Which documents are a query's positives, and which count at all: bool masks made from keys, strip by strip.

For a query and a document the first rule that applies decides:

1. an explicit positive of the query is a positive;
2. an explicit negative of the query is a negative;
3. a document of the query's group is a positive, and so is one with the content of a positive: a positive of this
   query, or of a query with the same content or group (a caption's other image is never a negative);
4. the query's own content is ignored;
5. all others are negatives.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.types import Ragged, Targets

NO_GROUP = -1


@dataclass(frozen=True)
class Masks:
    """Bool [queries, documents] for the queries from number `start` on: `positive`, and `valid` (not ignored)."""

    positive: Tensor
    valid: Tensor
    start: int = 0

    @property
    def negative(self) -> Tensor:
        """Bool [queries, documents]: valid, and no positive."""
        return self.valid & ~self.positive


@dataclass(frozen=True)
class _PositivePairs:
    """All explicit positive pairs of the batch: the query's keys and the document's content number, each [pairs].

    contents: [documents], equal where hashes are equal, numbered from 0 to num_contents.
    """

    query_hashes: Tensor
    query_groups: Tensor
    pair_contents: Tensor
    contents: Tensor
    num_contents: int


def dense_masks(targets: Targets) -> Masks:
    """The masks of all queries at once."""
    return next(mask_strips(targets, max(1, len(targets.query_hashes))))


def mask_strips(targets: Targets, rows: int) -> Iterator[Masks]:
    """The masks of `rows` queries after the other, the last strip perhaps smaller."""
    pairs = _positive_pairs(targets)
    num_queries = len(targets.query_hashes)
    for start in range(0, max(num_queries, 1), rows):
        yield _strip(targets, pairs, start, min(start + rows, num_queries))


def _strip(targets: Targets, pairs: _PositivePairs, start: int, stop: int) -> Masks:
    num_documents = len(targets.document_hashes)
    hashes = targets.query_hashes[start:stop, None]
    groups = targets.query_groups[start:stop, None]
    positive = _named_columns(take_rows(targets.positives, start, stop), num_documents)
    negative = _named_columns(take_rows(targets.negatives, start, stop), num_documents)
    same_group = (groups == targets.document_groups) & (groups != NO_GROUP)
    alike = same_group | _content_of_positives(pairs, hashes, groups)
    own = hashes == targets.document_hashes
    return Masks(positive | (alike & ~negative), positive | negative | alike | ~own, start)


def _positive_pairs(targets: Targets) -> _PositivePairs:
    columns = targets.positives.values
    queries = _row_of_slice(targets.positives)
    hashes, contents = torch.unique(targets.document_hashes, return_inverse=True)
    return _PositivePairs(
        query_hashes=targets.query_hashes[queries],
        query_groups=targets.query_groups[queries],
        pair_contents=contents[columns],
        contents=contents,
        num_contents=len(hashes),
    )


def _content_of_positives(pairs: _PositivePairs, hashes: Tensor, groups: Tensor) -> Tensor:
    """Bool [strip, documents]: has the content of a positive of a query with this hash or group [strip, 1]."""
    sharing = (hashes == pairs.query_hashes) | ((groups == pairs.query_groups) & (groups != NO_GROUP))
    counts = torch.zeros(len(hashes), pairs.num_contents, dtype=torch.int32, device=hashes.device)
    counts.index_add_(1, pairs.pair_contents, sharing.int())
    return counts.index_select(1, pairs.contents) > 0


def _named_columns(columns: Ragged, num_documents: int) -> Tensor:
    """Bool [rows, documents]: True where a row names the column."""
    named = torch.zeros(len(columns.counts), num_documents, dtype=torch.bool, device=columns.values.device)
    named[_row_of_slice(columns), columns.values] = True
    return named


def _row_of_slice(ragged: Ragged) -> Tensor:
    """Int64 [slices]: the row that owns each slice."""
    rows = torch.arange(len(ragged.counts), device=ragged.counts.device)
    return torch.repeat_interleave(rows, ragged.counts, output_size=len(ragged.values))
