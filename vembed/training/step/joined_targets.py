"""The targets of several batches as those of one, in which a document that stands in several of them is one column.

What the collator would have made of all rows at once, but for the order of documents: here those of each batch stand
together. Documents are equal when content and augmentation draw are. A column names the group of its first row; where
rows of other groups have the document as a positive too, rows of all of these groups name it themselves, whichever
batch they are of.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import concat_rows
from vembed.losses.named_documents import every_two, row_numbers
from vembed.types import NO_GROUP, Ragged, Targets


def join_targets(parts: Sequence[Targets]) -> tuple[Targets, Tensor]:
    """The joined targets, without embeddings of a teacher or a reference, and which documents are its columns.

    Those are int64 [columns], numbers among the documents of all parts one after the other, ascending.
    """
    hashes = torch.cat([part.document_hashes for part in parts])
    draws = torch.cat([draws_of(part) for part in parts])
    counted, columns = _first_places(torch.stack([hashes, draws], dim=1))
    places = torch.split(columns, [len(part.document_hashes) for part in parts])

    def renamed(named: Callable[[Targets], Ragged]) -> Ragged:
        """The documents that rows name, as columns of the joined batch."""
        own = zip(map(named, parts), places, strict=True)
        return concat_rows([Ragged(place[documents.values], documents.counts) for documents, place in own])

    def values(of_rows: Callable[[Targets], Ragged | None]) -> Ragged | None:
        return _none_if_empty(concat_rows([or_empty(of_rows(part), part) for part in parts]))

    joined = Targets(
        query_groups=torch.cat([part.query_groups for part in parts]),
        query_hashes=torch.cat([part.query_hashes for part in parts]),
        document_groups=_first_groups(torch.cat([part.document_groups for part in parts]), columns, len(counted)),
        document_hashes=hashes[counted],
        positives=renamed(lambda part: part.positives),
        negatives=renamed(lambda part: part.negatives),
        ignored=values(lambda part: part.ignored),
        scored=_none_if_empty(renamed(lambda part: or_empty(part.scored, part))),
        scores=values(lambda part: part.scores),
        document_draws=draws[counted],
    )
    positives = torch.cat([_codes(joined.positives, joined), _shared(joined)])
    negatives = _codes(joined.negatives, joined)
    return replace(joined, positives=_named(positives, joined), negatives=_named(negatives, joined)), counted


def draws_of(targets: Targets) -> Tensor:
    """Int64 [documents]: the augmentation draws, 0 where there are none."""
    draws = targets.document_draws
    return torch.zeros_like(targets.document_hashes) if draws is None else draws


def or_empty(values: Ragged | None, targets: Targets) -> Ragged:
    """The values of each query, none of them where the batch has none."""
    return Ragged(targets.query_hashes[:0], torch.zeros_like(targets.query_hashes)) if values is None else values


def _first_places(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Where each distinct key [rows, 2] stands first, ascending, and for every row which of those has its key."""
    kinds, kind_of_row = torch.unique(keys, dim=0, return_inverse=True)
    firsts = _firsts(torch.arange(len(keys), device=keys.device), kind_of_row, len(kinds), len(keys))
    places = firsts.sort().values
    return places, torch.searchsorted(places, firsts[kind_of_row])


def _firsts(numbers: Tensor, owners: Tensor, num_owners: int, otherwise: int) -> Tensor:
    """Int64 [owners]: the least of the numbers that are each owner's."""
    return numbers.new_full((num_owners,), otherwise).scatter_reduce(0, owners, numbers, "amin")


def _first_groups(groups: Tensor, columns: Tensor, num_columns: int) -> Tensor:
    """Int64 [columns]: the group of the first document of each column that has any."""
    grouped = (groups != NO_GROUP).nonzero().squeeze(1)
    firsts = _firsts(grouped, columns[grouped], num_columns, len(groups))
    return torch.cat([groups, groups.new_full((1,), NO_GROUP)])[firsts]


def _shared(targets: Targets) -> Tensor:
    """The codes of what rows name since it is a positive of several groups, theirs among them; not their negatives."""
    groups, columns = targets.query_groups[row_numbers(targets.positives)], targets.positives.values
    own = targets.document_groups[columns]
    others = (groups != NO_GROUP) & (own != NO_GROUP) & (groups != own)
    if not others.any():
        return columns[:0]
    shared = torch.isin(columns, columns[others]) & (groups != NO_GROUP)
    pairs = torch.unique(torch.stack([groups[shared], columns[shared]]), dim=1)
    wanted, kinds = torch.unique(pairs[0], return_inverse=True)
    rows = torch.isin(targets.query_groups, wanted).nonzero().squeeze(1)
    kinds_of_rows = torch.searchsorted(wanted, targets.query_groups[rows])
    by_group = _by_owner(rows, kinds_of_rows, len(wanted))
    first, second = every_two(by_group, _by_owner(pairs[1], kinds, len(wanted)))
    codes: Tensor = by_group.values[first] * len(targets.document_hashes) + pairs[1][second]
    return codes[~torch.isin(codes, _codes(targets.negatives, targets))]


def _by_owner(values: Tensor, owners: Tensor, num_owners: int) -> Ragged:
    """The values [slices] of each owner, in their order."""
    return Ragged(values[owners.argsort(stable=True)], torch.bincount(owners, minlength=num_owners))


def _codes(columns: Ragged, targets: Targets) -> Tensor:
    """Int64 [pairs]: one number for a row and a column that it names."""
    return row_numbers(columns) * len(targets.document_hashes) + columns.values


def _named(codes: Tensor, targets: Targets) -> Ragged:
    """The columns per row, distinct and ascending, of pairs with these codes."""
    codes, num_documents = torch.unique(codes), len(targets.document_hashes)
    rows = codes.div(num_documents, rounding_mode="floor")
    return Ragged(codes % num_documents, torch.bincount(rows, minlength=len(targets.query_hashes)))


def _none_if_empty(values: Ragged) -> Ragged | None:
    return values if len(values.values) else None
