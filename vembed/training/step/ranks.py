"""The batches of all ranks as one: what the loss of a step is taken of.

    keys of all ranks           join_ranks, before anything is embedded
    embeddings of all ranks     JoinedBatch.gather, once a rank has its own; no loss knows about ranks
    gradients of all ranks      average_gradients (vembed.utils.distributed), once per update, before clipping

Every rank takes the same loss, of the rows of all ranks in order of ranks. Its gradient goes on to the rank's own rows,
times the number of ranks; so the mean over ranks is the gradient of one process with the whole batch, of what embeds
the rows and of what the loss alone reads (temperature, bias, weights of classes). How a rank cuts its rows into chunks
is its own affair: nothing is exchanged but here, and as often on every rank.

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
from vembed.utils.distributed import gather_rows, gather_to_learn, group_size


@dataclass(frozen=True)
class JoinedBatch:
    """The batches of all ranks as one. `targets`: of all queries and of the documents that count.

    num_queries, num_documents: of each rank, before documents of several ranks became one. columns: int64 [documents
    that count], their numbers among the documents of all ranks; None where all of them count.
    """

    targets: Targets
    num_queries: tuple[int, ...]
    num_documents: tuple[int, ...]
    columns: Tensor | None = None

    def gather(self, own: Sides) -> Sides:
        """The embeddings of all ranks; every rank calls it alike. Gradient reaches this rank's own, times the ranks."""
        if len(self.num_queries) == 1:
            return own
        queries, documents = _gather(own.queries, self.num_queries), _gather(own.documents, self.num_documents)
        return Sides(queries, documents if self.columns is None else select_rows(documents, self.columns))

    def ranks_of(self, queries: Tensor, documents: Tensor) -> list[int]:
        """The ranks that some of these rows are embedded by: bool [queries] and [documents], of all ranks."""
        every = documents
        if self.columns is not None:
            every = documents.new_zeros(sum(self.num_documents)).index_copy(0, self.columns.cpu(), documents)
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
    keys = [_unpacked(packed) for packed in gather_rows(_packed(own))]
    parts = [part for part, _ in keys]
    num_queries = tuple(len(part.query_hashes) for part in parts)
    num_documents = tuple(len(part.document_hashes) for part in parts)
    for rank, (queries, documents) in enumerate(zip(num_queries, num_documents, strict=True)):
        if not queries or not documents:
            raise DataError(
                f"the batch of rank {rank} has {queries} queries and {documents} documents; a step over several ranks"
                " needs some of both on each"
            )
    targets, columns = join_targets(parts)
    joined = JoinedBatch(targets, num_queries, num_documents, None if len(columns) == sum(num_documents) else columns)
    if own.teacher is None or not all(taught for _, taught in keys):
        return joined
    return replace(joined, targets=replace(targets, teacher=joined.gather(own.teacher)))


def _gather(own: Embeddings, num_rows: Sequence[int]) -> Embeddings:
    """The rows of all ranks, in the dtype of this rank's; of multi-vector ones with as many tokens as the most has."""
    vectors = own.vectors
    if vectors.ndim == 2:
        return Embeddings(torch.cat(gather_to_learn(vectors)))
    mask = torch.ones_like(vectors[..., 0], dtype=torch.bool) if own.mask is None else own.mask
    tokens, masks = gather_to_learn(vectors.flatten(0, 1)), gather_rows(mask.flatten())
    return concat_rows(
        [
            Embeddings(part.view(rows, -1, part.shape[-1]), real.view(rows, -1))
            for part, real, rows in zip(tokens, masks, num_rows, strict=True)
        ]
    )


def _packed(targets: Targets) -> Tensor:
    """All keys as one tensor of int64, which is one exchange: how long each part is, then the parts."""
    scores = or_empty(targets.scores, targets)
    ragged = [
        targets.positives,
        targets.negatives,
        or_empty(targets.ignored, targets),
        or_empty(targets.scored, targets),
        Ragged(scores.values.double().view(torch.int64), scores.counts),
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
    """The keys, scores in float64, and whether there are embeddings of a teacher."""
    num_parts = int(packed[0])
    lengths = packed[1 : 1 + num_parts].tolist()
    parts = torch.split(packed[1 + num_parts :], lengths)
    query_groups, query_hashes, document_groups, document_hashes, draws, *rest, taught = parts
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
    return targets, bool(taught)
