"""Which documents are a query's positives, and which count at all: bool masks made from keys, strip by strip.

For a query and a document the first rule that applies decides:

1. an explicit positive of the query is a positive;
2. an explicit negative of the query is a negative;
3. a document with a content that the query's row names in `ignore` is ignored;
4. a document of the query's group is a positive, and so is one with the content of a positive: a positive of this
   query, or of a query with the same content or group (a caption's other image is never a negative);
5. the query's own content is ignored;
6. all others are negatives; where explicit negatives are private, those of other queries are ignored instead.

Among themselves, queries are each other's negatives unless they share content, group or a positive, and documents are
unless they share content, group or a query. Rules that no key of the batch can meet cost nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.losses.named_documents import row_numbers
from vembed.types import NO_GROUP, Ragged, Targets


@dataclass(frozen=True)
class Masks:
    """Bool [queries, documents] for the queries from number `start` on.

    `positive`; `explicit`, the negatives that the query's row names; `valid`, neither of which is ignored.
    """

    positive: Tensor
    valid: Tensor
    explicit: Tensor
    start: int = 0

    @property
    def negative(self) -> Tensor:
        """Bool [queries, documents]: valid, and no positive."""
        return self.valid & ~self.positive


MaskStrips = Callable[[int], Iterator[Masks]]  # rows per strip -> the masks of all strips


@dataclass(frozen=True)
class _Keys:
    """The keys of a batch, ready for comparison, and which rules they can meet.

    hashes: [contents], sorted and distinct; contents: [documents], each document's place there. pair_*: [pairs], the
    query's number and keys and the document's content of all explicit positive pairs. grouped: a query has a group.
    repeated: content of queries or documents stands twice. itself: a query's content stands among the documents.
    """

    targets: Targets
    hashes: Tensor
    contents: Tensor
    pair_queries: Tensor
    pair_hashes: Tensor
    pair_groups: Tensor
    pair_contents: Tensor
    grouped: bool
    repeated: bool
    itself: bool


def dense_masks(targets: Targets, *, private_negatives: bool = False) -> Masks:
    """The masks of all queries at once."""
    return next(mask_strips(targets, max(1, len(targets.query_hashes)), private_negatives=private_negatives))


def mask_strips(targets: Targets, rows: int, *, private_negatives: bool = False) -> Iterator[Masks]:
    """The masks of `rows` queries after the other, the last strip perhaps smaller."""
    keys = _keys(targets)
    private = _private_columns(targets) if private_negatives else None
    for start, stop in _ranges(len(targets.query_hashes), rows):
        yield _strip(keys, private, start, stop)


def query_mask_strips(targets: Targets, rows: int) -> Iterator[Masks]:
    """The masks [queries, queries] of `rows` queries after the other, queries in the place of documents."""
    keys = _keys(targets)
    hashes, groups = targets.query_hashes, targets.query_groups
    for start, stop in _ranges(len(hashes), rows):
        alike = _equal_keys(hashes, groups, start, stop)
        if keys.grouped or keys.repeated:
            contents = _contents_of_positives(keys, hashes[start:stop, None], groups[start:stop, None])
            alike |= _sum_by(contents[:, keys.pair_contents], keys.pair_queries, len(hashes))
        yield _without_positives(alike, start)


def document_mask_strips(targets: Targets, rows: int) -> Iterator[Masks]:
    """The masks [documents, documents] of `rows` documents after the other, documents in the place of queries."""
    keys = _keys(targets)
    hashes, groups = targets.document_hashes, targets.document_groups
    for start, stop in _ranges(len(hashes), rows):
        alike = _equal_keys(hashes, groups, start, stop)
        asked = keys.contents[start:stop, None] == keys.pair_contents  # [strip, pairs]
        queries = _sum_by(asked, keys.pair_queries, len(targets.query_hashes))
        shared = _sum_by(queries[:, keys.pair_queries], keys.pair_contents, len(keys.hashes))
        yield _without_positives(alike | shared.index_select(1, keys.contents), start)


def _strip(keys: _Keys, private: Tensor | None, start: int, stop: int) -> Masks:
    targets, num_documents = keys.targets, len(keys.contents)
    hashes = targets.query_hashes[start:stop, None]
    groups = targets.query_groups[start:stop, None]
    positive = _named_columns(take_rows(targets.positives, start, stop), num_documents)
    explicit = _named_columns(take_rows(targets.negatives, start, stop), num_documents) & ~positive
    left_out = _ignored(keys, start, stop)
    if keys.grouped or keys.repeated:
        alike = _contents_of_positives(keys, hashes, groups).index_select(1, keys.contents)
        alike |= (groups == targets.document_groups) & (groups != NO_GROUP)
        positive |= alike & ~explicit if left_out is None else alike & ~explicit & ~left_out
    if keys.itself:
        own = hashes == targets.document_hashes
        left_out = own if left_out is None else left_out | own
    if private is not None:
        left_out = private.expand_as(positive) if left_out is None else left_out | private
    valid = torch.ones_like(positive) if left_out is None else positive | explicit | ~left_out
    return Masks(positive, valid, explicit, start)


def _keys(targets: Targets) -> _Keys:
    columns = targets.positives.values
    queries = row_numbers(targets.positives)
    hashes, contents = torch.unique(targets.document_hashes, return_inverse=True)
    distinct_queries = torch.unique(targets.query_hashes)
    distinct = len(distinct_queries) == len(targets.query_hashes) and len(hashes) == len(contents)
    return _Keys(
        targets=targets,
        hashes=hashes,
        contents=contents,
        pair_queries=queries,
        pair_hashes=targets.query_hashes[queries],
        pair_groups=targets.query_groups[queries],
        pair_contents=contents[columns],
        grouped=bool((targets.query_groups != NO_GROUP).any()),
        repeated=not distinct or bool((torch.bincount(columns) > 1).any()),
        itself=bool(torch.isin(distinct_queries, hashes).any()),
    )


def _contents_of_positives(keys: _Keys, hashes: Tensor, groups: Tensor) -> Tensor:
    """Bool [strip, contents]: is a positive's content for a query with this hash or group [strip, 1]."""
    sharing = (hashes == keys.pair_hashes) | ((groups == keys.pair_groups) & (groups != NO_GROUP))
    return _sum_by(sharing, keys.pair_contents, len(keys.hashes))


def _ignored(keys: _Keys, start: int, stop: int) -> Tensor | None:
    """Bool [strip, documents]: the row names this content in `ignore`; None when no row of the batch names any."""
    ignored = keys.targets.ignored
    if ignored is None or len(ignored.values) == 0:
        return None
    rows = take_rows(ignored, start, stop)
    places = torch.searchsorted(keys.hashes, rows.values).clamp(max=len(keys.hashes) - 1)
    found = keys.hashes[places] == rows.values
    named = torch.zeros(len(rows.counts), len(keys.hashes), dtype=torch.bool, device=keys.hashes.device)
    named[row_numbers(rows)[found], places[found]] = True
    return named.index_select(1, keys.contents)


def _private_columns(targets: Targets) -> Tensor:
    """Bool [documents]: an explicit negative of some query, and a positive of none."""
    private = torch.zeros(len(targets.document_hashes), dtype=torch.bool, device=targets.document_hashes.device)
    private[targets.negatives.values] = True
    private[targets.positives.values] = False
    return private


def _equal_keys(hashes: Tensor, groups: Tensor, start: int, stop: int) -> Tensor:
    """Bool [strip, rows]: rows of one side with the same content (each row with itself) or group."""
    same_group = (groups[start:stop, None] == groups) & (groups != NO_GROUP)
    return (hashes[start:stop, None] == hashes) | same_group


def _without_positives(alike: Tensor, start: int) -> Masks:
    none = torch.zeros_like(alike)
    return Masks(none, ~alike, none, start)


def _ranges(length: int, rows: int) -> Iterator[tuple[int, int]]:
    """Where strips start and stop; no rows are one strip."""
    return ((start, min(start + rows, length)) for start in range(0, max(length, 1), rows))


def _sum_by(flags: Tensor, numbers: Tensor, length: int) -> Tensor:
    """Bool [strip, length]: whether any of the flags [strip, entries] with this number [entries] is set."""
    counts = torch.zeros(len(flags), length, dtype=torch.int32, device=flags.device)
    return counts.index_add_(1, numbers, flags.int()) > 0


def _named_columns(columns: Ragged, num_documents: int) -> Tensor:
    """Bool [rows, documents]: True where a row names the column."""
    named = torch.zeros(len(columns.counts), num_documents, dtype=torch.bool, device=columns.values.device)
    named[row_numbers(columns), columns.values] = True
    return named
