"""The batches of all ranks as one: what the loss of a step is taken of.

    keys of all ranks           join_ranks, before anything is embedded
    embeddings of all ranks     JoinedBatch.gather, once a rank has its own; no loss knows about ranks
    gradients of all ranks      average_gradients (vembed.utils.distributed), once per update, before clipping

Every rank takes the same loss, of the rows of all ranks in order of ranks:

    queries   = cat([queries of rank 0, queries of rank 1, ...])                     # [queries of all ranks, dim]
    documents = cat([documents of rank 0, documents of rank 1, ...])[columns]        # [documents that count, dim]
    loss      = loss_function(queries, documents, targets of all ranks)              # one number, on every rank

Rows of other ranks are constants there, and the gradient goes on to the rank's own, times the number of ranks. So the
mean over ranks is the gradient of one process with the whole batch: of what embeds the rows, of which each rank has a
part (the mean of parts times ranks is their sum), and of what the loss alone reads (temperature, bias, weights of
classes), of which each has all. How a rank cuts its rows into chunks is its own affair: nothing is exchanged but here,
and as often on every rank.

A document that several ranks have counts once, and its gradient is taken where it stands first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vembed.errors import DataError
from vembed.grad_cache.cachex.tree_utils import concat_rows, select_rows
from vembed.training.step.joined_targets import draws_of, join_targets, or_empty
from vembed.types import Embeddings, Ragged, Sides, Targets
from vembed.utils.distributed import gather_rows, gather_rows_with_gradient, group_size


@dataclass(frozen=True)
class JoinedBatch:
    """The batches of all ranks as one. `targets`: of all queries and of the documents that count.

    num_queries, num_documents: of each rank, before documents of several ranks became one. documents: int64 [columns],
    for each column of the scores the number of its document among those of all ranks; None: each is a column.
    """

    targets: Targets
    num_queries: tuple[int, ...]
    num_documents: tuple[int, ...]
    documents: Tensor | None = None

    def gather(self, own: Sides) -> Sides:
        """The embeddings of all ranks; every rank calls it alike. Gradient reaches this rank's own, times the ranks."""
        if len(self.num_queries) == 1:  # one rank: nobody to exchange with
            return own
        queries, documents = _gather(own.queries, self.num_queries), _gather(own.documents, self.num_documents)
        return Sides(queries, documents if self.documents is None else select_rows(documents, self.documents))

    def ranks_of(self, queries: Tensor, documents: Tensor) -> list[int]:
        """The ranks that embed some of these rows: bool [queries], and bool [documents that count]."""
        every = documents
        if self.documents is not None:  # back to all documents; a repeated one is its first rank's alone
            every = documents.new_zeros(sum(self.num_documents)).index_copy(0, self.documents.cpu(), documents)
        parts = zip(
            torch.split(queries, list(self.num_queries)), torch.split(every, list(self.num_documents)), strict=True
        )
        return [rank for rank, sides in enumerate(parts) if any(bool(side.any()) for side in sides)]


def join_ranks(own: Targets) -> JoinedBatch:
    """This rank's batch and those of the others as one; every rank calls it, before it embeds.

    A reference is not joined: its embeddings come later. Raises DataError, on every rank, when one has no query or no
    document.
    """
    if group_size() == 1:
        return JoinedBatch(own, (len(own.query_hashes),), (len(own.document_hashes),))
    keys = [_unpacked(packed) for packed in gather_rows(_packed(own))]  # of each rank
    parts = [part for part, _ in keys]
    num_queries = tuple(len(part.query_hashes) for part in parts)
    num_documents = tuple(len(part.document_hashes) for part in parts)
    # Every rank sees the counts of all and raises by itself: one that went on would wait for the others for ever.
    for rank, (queries, documents) in enumerate(zip(num_queries, num_documents, strict=True)):
        if not queries or not documents:
            raise DataError(
                f"the batch of rank {rank} has {queries} queries and {documents} documents; a step over several ranks"
                " needs some of both on each"
            )
    targets, columns = join_targets(parts)  # each rank joins the same, so that nothing more need be exchanged
    joined = JoinedBatch(targets, num_queries, num_documents, None if len(columns) == sum(num_documents) else columns)
    # Gathering is an exchange, in which all ranks take part or none: a teacher counts where every rank has one.
    if own.teacher is None or not all(has_teacher for _, has_teacher in keys):
        return joined
    return replace(joined, targets=replace(targets, teacher=joined.gather(own.teacher)))


def _gather(own: Embeddings, num_rows: Sequence[int]) -> Embeddings:
    """The rows of all ranks, [rows of all ranks, dim], or [rows of all ranks, tokens, dim] with the longest's tokens.

    num_rows: of each rank.
    """
    vectors = own.vectors
    if vectors.ndim == 2:
        return Embeddings(torch.cat(gather_rows_with_gradient(vectors)))
    mask = torch.ones_like(vectors[..., 0], dtype=torch.bool) if own.mask is None else own.mask  # [rows, tokens]
    # Ranks pad to token counts of their own, and may differ in the first axis only: so tokens are exchanged as rows,
    # [rows * tokens, dim], and made rows again by the number of rows that each rank has.
    tokens, masks = gather_rows_with_gradient(vectors.flatten(0, 1)), gather_rows(mask.flatten())
    return concat_rows(
        [
            Embeddings(part.view(rows, -1, part.shape[-1]), real.view(rows, -1))
            for part, real, rows in zip(tokens, masks, num_rows, strict=True)
        ]
    )


def _packed(targets: Targets) -> Tensor:
    """All keys as one int64 tensor, which is one exchange: number of parts, length of each part, the parts.

    Scores travel as the bits of float64, which int64 holds as they are.
    """
    scores = or_empty(targets.scores, targets)
    ragged = [
        targets.positives,
        targets.negatives,
        or_empty(targets.ignored, targets),
        or_empty(targets.scored, targets),
        Ragged(scores.values.double().view(torch.int64), scores.counts),  # the same bits, read as integers
    ]
    parts = [
        targets.query_groups,
        targets.query_hashes,
        targets.document_groups,
        targets.document_hashes,
        draws_of(targets),
        *(tensor for one in ragged for tensor in (one.values, one.counts)),
        targets.query_hashes.new_tensor([targets.teacher is not None]),
    ]
    return torch.cat([targets.query_hashes.new_tensor([len(parts), *map(len, parts)]), *parts])


def _unpacked(packed: Tensor) -> tuple[Targets, bool]:
    """The inverse of `_packed`: the keys, scores in float64, and whether there are embeddings of a teacher."""
    num_parts = int(packed[0])
    lengths = packed[1 : 1 + num_parts].tolist()
    parts = torch.split(packed[1 + num_parts :], lengths)
    query_groups, query_hashes, document_groups, document_hashes, draws, *rest, has_teacher = parts
    # The rest is five Ragged in the order of `_packed`, values and counts in turn.
    positives, negatives, ignored, scored, scores = (
        Ragged(values, counts) for values, counts in zip(rest[::2], rest[1::2], strict=True)
    )
    targets = Targets(
        query_groups,
        query_hashes,
        document_groups,
        document_hashes,
        positives,
        negatives,
        ignored=ignored,
        scored=scored,
        scores=Ragged(scores.values.view(torch.float64), scores.counts),
        document_draws=draws,
    )
    return targets, bool(has_teacher)
