"""Which documents are a query's positives, and which count at all: bool masks made from keys, strip by strip.

Keys are int64 numbers of the rows' contents (hashes) and groups (`vembed.types.Targets`); a strip is a block of whole
rows of the masks [queries, documents]. For a query and a document the first rule that applies decides:

1. an explicit positive of the query is a positive;
2. an explicit negative of the query is a negative;
3. a document with a content that the query's row names in `ignore` is ignored;
4. a document of the query's group is a positive, and so is one with the content of a positive: a positive of this
   query, or of a query with the same content or group (a caption's other image is never a negative);
5. the query's own content is ignored;
6. all others are negatives; where explicit negatives are private, those of other queries are ignored instead.

The same for query q and document d, rule by rule (what has no group is in nobody's):

    alike = {p for p in queries if content[p] == content[q] or group[p] == group[q]}        # q among them
    if d in positives[q]:                                                     positive
    elif d in negatives[q]:                                                   negative (explicit)
    elif content[d] in ignored[q]:                                            ignored
    elif group[d] == group[q]:                                                positive
    elif content[d] in (content[e] for p in alike for e in positives[p]):     positive
    elif content[d] == content[q]:                                            ignored
    elif private and d is in some negatives and in no positives:              ignored
    else:                                                                     negative

Queries are each other's negatives unless they share content, a group or a positive; documents are, unless they share
content, a group, or a query that both are positives of. Rules that no key of the batch can meet cost nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.types import NO_GROUP, Ragged, Targets
from vembed.utils.ragged import row_numbers


@dataclass(frozen=True)
class Masks:
    """Bool [rows, documents] each, for the queries from number `start` on.

    positive; explicit: the negatives that the query's row names; valid: all that is not ignored, these among it.
    """

    positive: Tensor
    valid: Tensor
    explicit: Tensor
    start: int = 0

    @property
    def negative(self) -> Tensor:
        """Bool [rows, documents]: valid, and no positive."""
        return self.valid & ~self.positive


MaskStrips = Callable[[int], Iterator[Masks]]  # rows per strip -> the masks of all strips


@dataclass(frozen=True)
class _Keys:
    """The keys of a batch, ready for comparison, and which rules they can meet.

    Contents are numbered: content number i has the hash `hashes[i]`, and the document d the content number
    `contents[d]`. What is asked of a document is so asked once for each distinct content.

    hashes: [contents], ascending. contents: [documents]. pair_*: [pairs], of all explicit positive pairs the query's
    number, its hash and group, and the document's content number. has_groups: a query has a group. has_repeats: two
    queries or two documents have one content, or two rows name one positive. has_own: a query's content is also a
    document's.
    """

    targets: Targets
    hashes: Tensor
    contents: Tensor
    pair_queries: Tensor
    pair_hashes: Tensor
    pair_groups: Tensor
    pair_contents: Tensor
    has_groups: bool
    has_repeats: bool
    has_own: bool


def dense_masks(targets: Targets, *, private_negatives: bool = False) -> Masks:
    """The masks of all queries at once.

    Two captions of a group, a positive document of each, and the first caption's own content as a third document:

    >>> key = torch.tensor
    >>> positives, negatives = Ragged(key([0, 1]), key([1, 1])), Ragged(key([0])[:0], key([0, 0]))
    >>> targets = Targets(key([7, 7]), key([1, 2]), key([-1, -1, -1]), key([11, 12, 1]), positives, negatives)
    >>> masks = dense_masks(targets)
    >>> masks.positive  # rule 4
    tensor([[ True,  True, False],
            [ True,  True, False]])
    >>> masks.negative  # rules 5 and 6
    tensor([[False, False, False],
            [False, False,  True]])
    """
    return next(mask_strips(targets, max(1, len(targets.query_hashes)), private_negatives=private_negatives))


def mask_strips(targets: Targets, rows: int, *, private_negatives: bool = False) -> Iterator[Masks]:
    """The masks of the queries, `rows` of them at a time, the last strip perhaps smaller."""
    keys = _keys(targets)
    private = _private_columns(targets) if private_negatives else None
    for start, stop in _ranges(len(targets.query_hashes), rows):
        yield _strip_masks(keys, private, start, stop)


def query_mask_strips(targets: Targets, rows: int) -> Iterator[Masks]:
    """The masks [rows, queries] of `rows` queries at a time, all queries in the place of documents; no positives."""
    keys = _keys(targets)
    hashes, groups = targets.query_hashes, targets.query_groups
    for start, stop in _ranges(len(hashes), rows):
        alike = _equal_keys(hashes, groups, start, stop)  # [rows, queries]
        if keys.has_groups or keys.has_repeats:
            contents = _contents_of_positives(keys, hashes[start:stop, None], groups[start:stop, None])
            shared = contents[:, keys.pair_contents]  # [rows, pairs]: the pair's document is a positive of the row too
            alike |= _any_by(shared, keys.pair_queries, len(hashes))
        yield _all_but(alike, start)


def document_mask_strips(targets: Targets, rows: int) -> Iterator[Masks]:
    """The masks [rows, documents] of `rows` documents at a time, documents in the place of queries; no positives."""
    keys = _keys(targets)
    hashes, groups = targets.document_hashes, targets.document_groups
    for start, stop in _ranges(len(hashes), rows):
        alike = _equal_keys(hashes, groups, start, stop)  # [rows, documents]
        # From a document to the queries that it is a positive of, and from these to all of their positives.
        asked = keys.contents[start:stop, None] == keys.pair_contents  # [rows, pairs]
        queries = _any_by(asked, keys.pair_queries, len(targets.query_hashes))  # [rows, queries]
        shared = _any_by(queries[:, keys.pair_queries], keys.pair_contents, len(keys.hashes))  # [rows, contents]
        yield _all_but(alike | shared.index_select(1, keys.contents), start)


def _strip_masks(keys: _Keys, private: Tensor | None, start: int, stop: int) -> Masks:
    """The masks of the queries from number `start` to `stop` (not included), by the rules in their order."""
    targets, num_documents = keys.targets, len(keys.contents)
    hashes = targets.query_hashes[start:stop, None]  # [rows, 1]
    groups = targets.query_groups[start:stop, None]  # [rows, 1]
    positive = _named_columns(take_rows(targets.positives, start, stop), num_documents)  # [rows, documents]
    explicit = _named_columns(take_rows(targets.negatives, start, stop), num_documents) & ~positive
    # A rule that no key can meet leaves None instead of a mask of False: a mask is as large as the scores.
    ignored = _ignored_by_rows(keys, start, stop)
    if keys.has_groups or keys.has_repeats:  # else rule 4 finds explicit positives only
        alike = _contents_of_positives(keys, hashes, groups).index_select(1, keys.contents)  # [rows, documents]
        alike |= (groups == targets.document_groups) & (groups != NO_GROUP)
        positive |= alike & ~explicit if ignored is None else alike & ~explicit & ~ignored
    # From here on what is ignored gives way to what is positive or explicit, in the last line.
    if keys.has_own:
        own = hashes == targets.document_hashes
        ignored = own if ignored is None else ignored | own
    if private is not None:
        ignored = private.expand_as(positive) if ignored is None else ignored | private
    valid = torch.ones_like(positive) if ignored is None else positive | explicit | ~ignored
    return Masks(positive, valid, explicit, start)


def _keys(targets: Targets) -> _Keys:
    columns = targets.positives.values  # [pairs]
    queries = row_numbers(targets.positives)  # [pairs]
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
        has_groups=bool((targets.query_groups != NO_GROUP).any()),
        has_repeats=not distinct or bool((torch.bincount(columns) > 1).any()),
        has_own=bool(torch.isin(distinct_queries, hashes).any()),
    )


def _contents_of_positives(keys: _Keys, hashes: Tensor, groups: Tensor) -> Tensor:
    """Bool [rows, contents]: a positive of some query with the same hash or group has the content.

    hashes, groups: [rows, 1], of the rows' queries.
    """
    sharing = (hashes == keys.pair_hashes) | ((groups == keys.pair_groups) & (groups != NO_GROUP))  # [rows, pairs]
    return _any_by(sharing, keys.pair_contents, len(keys.hashes))


def _ignored_by_rows(keys: _Keys, start: int, stop: int) -> Tensor | None:
    """Bool [rows, documents]: the row names this content in `ignore`; None when no row of the batch names any."""
    ignored = keys.targets.ignored
    if ignored is None or len(ignored.values) == 0:
        return None
    rows = take_rows(ignored, start, stop)
    # The content number of each hash that rows name; of one that no document has, the search gives another's.
    places = torch.searchsorted(keys.hashes, rows.values).clamp(max=len(keys.hashes) - 1)
    found = keys.hashes[places] == rows.values  # [named hashes]
    named = torch.zeros(len(rows.counts), len(keys.hashes), dtype=torch.bool, device=keys.hashes.device)
    named[row_numbers(rows)[found], places[found]] = True  # [rows, contents]
    return named.index_select(1, keys.contents)


def _private_columns(targets: Targets) -> Tensor:
    """Bool [documents]: an explicit negative of some query, and a positive of none."""
    private = torch.zeros(len(targets.document_hashes), dtype=torch.bool, device=targets.document_hashes.device)
    private[targets.negatives.values] = True
    private[targets.positives.values] = False
    return private


def _equal_keys(hashes: Tensor, groups: Tensor, start: int, stop: int) -> Tensor:
    """Bool [rows, all rows]: of one side, with the same content (each row with itself) or group."""
    same_group = (groups[start:stop, None] == groups) & (groups != NO_GROUP)
    return (hashes[start:stop, None] == hashes) | same_group


def _all_but(alike: Tensor, start: int) -> Masks:
    """Masks in which all is a negative but what is alike, which is ignored."""
    none = torch.zeros_like(alike)
    return Masks(none, ~alike, none, start)


def _ranges(length: int, rows: int) -> Iterator[tuple[int, int]]:
    """Where strips start and stop. No rows are one strip of none, so that there is a first one to take."""
    return ((start, min(start + rows, length)) for start in range(0, max(length, 1), rows))


def _any_by(flags: Tensor, numbers: Tensor, length: int) -> Tensor:
    """Bool [rows, length]: at number n whether any of the flags [rows, entries] is set whose number [entries] is n.

    >>> _any_by(torch.tensor([[True, False, False]]), torch.tensor([2, 2, 0]), 3)
    tensor([[False, False,  True]])
    """
    counts = torch.zeros(len(flags), length, dtype=torch.int32, device=flags.device)
    return counts.index_add_(1, numbers, flags.int()) > 0


def _named_columns(columns: Ragged, num_documents: int) -> Tensor:
    """Bool [rows, documents]: True where a row names the column."""
    named = torch.zeros(len(columns.counts), num_documents, dtype=torch.bool, device=columns.values.device)
    named[row_numbers(columns), columns.values] = True
    return named
