"""The targets of several batches as those of one, in which a document that stands in several of them is one column.

What the collator would have made of all rows at once, but for the order of documents: here those of each batch stand
together. A column is a document's number in the batch, and so its place in the scores [queries, documents]. Documents
are equal when content and augmentation draw are. A column names the group of its first row; where rows of other groups
have the document as a positive too, rows of all of these groups name it themselves, whichever batch they are of.

In plain loops over the documents and rows of all batches one after the other (NO_GROUP is no group):

    columns = distinct (content, draw) of documents, in order of where they stand first
    column_of[d] = columns.index((content[d], draw[d]))
    group[c] = group of the first document d that has one, of those with column_of[d] == c
    positives[q] = {column_of[d] for d in the documents that row q names}               # negatives alike
    for c in columns:
        groups = {group[q] for rows q that have one and c in positives[q]}
        if c has a group, and groups has others than that:
            for rows q with group[q] in groups:  if c not in negatives[q]: positives[q].add(c)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import concat_rows
from vembed.types import NO_GROUP, Ragged, Targets
from vembed.utils.ragged import cell_numbers, pairs_within_rows, row_numbers


def join_targets(parts: Sequence[Targets]) -> tuple[Targets, Tensor]:
    """The joined targets, without embeddings of a teacher or a reference, and which documents are its columns.

    Those are int64 [columns], numbers among the documents of all parts one after the other, ascending.

    Document 7 stands in both batches, and is a positive in both; document 8 is a negative:

    >>> key = torch.tensor
    >>> one, none = Ragged(key([0]), key([1])), Ragged(key([0])[:0], key([0]))
    >>> first = Targets(key([-1]), key([1]), key([-1]), key([7]), one, none)
    >>> second = Targets(key([-1]), key([2]), key([-1, -1]), key([8, 7]), Ragged(key([1]), key([1])), one)
    >>> joined, documents = join_targets([first, second])
    >>> joined.document_hashes, joined.positives.values, joined.negatives.values, documents
    (tensor([7, 8]), tensor([0, 0]), tensor([1]), tensor([0, 1]))
    """
    hashes = torch.cat([part.document_hashes for part in parts])  # [all documents]
    draws = torch.cat([draws_of(part) for part in parts])  # [all documents]
    firsts, column_of = _first_of_each(torch.stack([hashes, draws], dim=1))
    columns_of_parts = torch.split(column_of, [len(part.document_hashes) for part in parts])

    def as_columns(named: Callable[[Targets], Ragged]) -> Ragged:
        """The documents that rows name, by their numbers in their own batch, as columns of the joined one."""
        own = zip(map(named, parts), columns_of_parts, strict=True)
        return concat_rows([Ragged(columns[documents.values], documents.counts) for documents, columns in own])

    def joined_values(of_rows: Callable[[Targets], Ragged | None]) -> Ragged | None:
        """Values of rows that are no columns (scores, hashes), concatenated."""
        return _none_if_empty(concat_rows([or_empty(of_rows(part), part) for part in parts]))

    joined = Targets(
        query_groups=torch.cat([part.query_groups for part in parts]),
        query_hashes=torch.cat([part.query_hashes for part in parts]),
        document_groups=_first_groups(torch.cat([part.document_groups for part in parts]), column_of, len(firsts)),
        document_hashes=hashes[firsts],
        positives=as_columns(lambda part: part.positives),
        negatives=as_columns(lambda part: part.negatives),
        ignored=joined_values(lambda part: part.ignored),
        scored=_none_if_empty(as_columns(lambda part: or_empty(part.scored, part))),
        scores=joined_values(lambda part: part.scores),
        document_draws=draws[firsts],
    )
    # Rows may name a column twice now, by two documents that became one: distinct again, and ascending as a collator's.
    positives = torch.cat([_pair_codes(joined.positives, joined), _codes_of_shared(joined)])
    negatives = _pair_codes(joined.negatives, joined)
    return replace(joined, positives=_decoded(positives, joined), negatives=_decoded(negatives, joined)), firsts


def draws_of(targets: Targets) -> Tensor:
    """Int64 [documents]: the augmentation draws, 0 where there are none."""
    draws = targets.document_draws
    return torch.zeros_like(targets.document_hashes) if draws is None else draws


def or_empty(values: Ragged | None, targets: Targets) -> Ragged:
    """The values of each query, none of them where the batch has none."""
    return Ragged(targets.query_hashes[:0], torch.zeros_like(targets.query_hashes)) if values is None else values


def _first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each distinct key [rows, 2], ascending, and for every row the number of its key among those.

    >>> _first_of_each(torch.tensor([[9, 0], [2, 0], [9, 0]]))
    (tensor([0, 1]), tensor([0, 1, 0]))
    """
    distinct, number_of = torch.unique(keys, dim=0, return_inverse=True)  # sorted by value: [keys, 2] and [rows]
    firsts = _least_of_each(torch.arange(len(keys), device=keys.device), number_of, len(distinct), len(keys))  # [keys]
    ascending = firsts.sort().values  # [keys], by place instead of value
    return ascending, torch.searchsorted(ascending, firsts[number_of])


def _least_of_each(numbers: Tensor, owners: Tensor, num_owners: int, otherwise: int) -> Tensor:
    """Int64 [owners]: the least of the numbers [entries] that are each owner's, by owners [entries]; or `otherwise`."""
    return numbers.new_full((num_owners,), otherwise).scatter_reduce(0, owners, numbers, "amin")


def _first_groups(groups: Tensor, column_of: Tensor, num_columns: int) -> Tensor:
    """Int64 [columns]: the group of the first document of each column that has any; of groups [all documents]."""
    grouped = (groups != NO_GROUP).nonzero().squeeze(1)  # [documents with a group]
    firsts = _least_of_each(grouped, column_of[grouped], num_columns, len(groups))  # [columns]
    # A column without a group has the number past the last document, where NO_GROUP is put.
    return torch.cat([groups, groups.new_full((1,), NO_GROUP)])[firsts]


def _codes_of_shared(targets: Targets) -> Tensor:
    """Codes [pairs] of the rows and columns of the last loop above: a positive of several groups is all of theirs."""
    groups, columns = targets.query_groups[row_numbers(targets.positives)], targets.positives.values  # [pairs] each
    own = targets.document_groups[columns]  # [pairs]: the one group that the column names
    others = (groups != NO_GROUP) & (own != NO_GROUP) & (groups != own)
    if not others.any():
        return columns[:0]
    shared = torch.isin(columns, columns[others]) & (groups != NO_GROUP)  # [pairs]
    wanted_groups, wanted_columns = torch.unique(torch.stack([groups[shared], columns[shared]]), dim=1)  # [wanted] each
    distinct, numbers = torch.unique(wanted_groups, return_inverse=True)  # [groups], [wanted]
    rows = torch.isin(targets.query_groups, distinct).nonzero().squeeze(1)  # [rows of these groups]
    rows_of_group = _by_owner(rows, torch.searchsorted(distinct, targets.query_groups[rows]), len(distinct))
    columns_of_group = _by_owner(wanted_columns, numbers, len(distinct))
    # Within each group every row with every column.
    first, second = pairs_within_rows(rows_of_group, columns_of_group)
    codes: Tensor = rows_of_group.values[first] * len(targets.document_hashes) + columns_of_group.values[second]
    return codes[~torch.isin(codes, _pair_codes(targets.negatives, targets))]


def _by_owner(values: Tensor, owners: Tensor, num_owners: int) -> Ragged:
    """The values [slices] of each owner, in their order; owners: int64 [slices]."""
    return Ragged(values[owners.argsort(stable=True)], torch.bincount(owners, minlength=num_owners))


def _pair_codes(columns: Ragged, targets: Targets) -> Tensor:
    """Int64 [pairs]: one number for a row and a column that it names, so that sets of pairs are sets of numbers."""
    return cell_numbers(columns, len(targets.document_hashes))


def _decoded(codes: Tensor, targets: Targets) -> Ragged:
    """The columns per row, distinct and ascending, of pairs with these codes."""
    codes, num_documents = torch.unique(codes), len(targets.document_hashes)
    rows = codes.div(num_documents, rounding_mode="floor")  # [distinct pairs], ascending
    return Ragged(codes % num_documents, torch.bincount(rows, minlength=len(targets.query_hashes)))


def _none_if_empty(values: Ragged) -> Ragged | None:
    """The values; None, as a collator has it, where no row has any."""
    return values if len(values.values) else None
