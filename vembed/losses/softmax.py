"""The parts of softmax losses: sums over positive pairs, and over what `contrasts` found to stand against them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.contrasts import NOTHING, CandidateSums, Contrasts
from vembed.losses.masks import Masks
from vembed.losses.settings import Direction
from vembed.losses.strips import sum_over_strips


@dataclass(frozen=True)
class Anchors:
    """One side of positive pairs: its candidates' sums and its weight, in a shape that broadcasts with the scores.

    With the scores of pairs [pairs]: [pairs]. With a strip of scores [rows, documents]: [rows, 1] for queries, and
    [documents] for documents.

    weight: 1 / (the anchor's pairs x the anchors that have any): a weighted sum over pairs is the mean over anchors of
    the mean over an anchor's pairs.
    """

    against: CandidateSums
    weight: Tensor

    def at(self, numbers: Tensor) -> "Anchors":
        """Those with these numbers, int64 [pairs]."""
        return Anchors(self.against.at(numbers), self.weight[numbers])


# Scores of pairs, their queries and their documents as anchors -> losses of the scores' shape.
PairLoss = Callable[[Tensor, Anchors, Anchors], Tensor]


def sum_over_pairs(found: Contrasts, loss: PairLoss, by_query: CandidateSums, by_document: CandidateSums) -> Tensor:
    """The sum of `loss` over all positive pairs, a scalar; by_query, by_document: what stands against their sides.

    The loss of a pair must depend on nothing of other pairs. It is asked for pairs alone, or for whole strips of scores
    where `found` has not kept the pairs.
    """
    query, document = _anchors(by_query, found.positives_per_query), _anchors(by_document, found.positives_per_document)
    if found.pairs is not None:
        pairs = found.pairs
        return loss(pairs.scores, query.at(pairs.queries), document.at(pairs.documents)).sum()

    def of_strip(scores: Tensor, masks: Masks, *sums: Tensor) -> tuple[Tensor, Tensor]:
        rows = slice(masks.start, masks.start + len(scores))
        queries = Anchors(CandidateSums(*(one[rows, None] for one in sums[:3])), query.weight[rows, None])
        losses = loss(scores, queries, Anchors(CandidateSums(*sums[3:]), document.weight))
        return losses.masked_fill(~masks.positive, 0).sum(), scores.new_zeros(())

    sums = [one for side in (by_query, by_document) for one in (side.log_sum, side.total, side.count)]
    total, _ = sum_over_strips(found.view, found.masks, of_strip, *sums)
    return total


def pair_losses(scores: Tensor, against: CandidateSums, label_smoothing: float = 0.0) -> Tensor:
    """-log of the softmax of each pair's score among itself and what stands against it, entry by entry.

    With label smoothing e, a share e of the target is spread evenly over the pair and all of its candidates.

    >>> against = CandidateSums(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([1.0]))
    >>> pair_losses(torch.tensor([1.0]), against)  # log 2
    tensor([0.6931])
    """
    losses = -functional.logsigmoid(scores - against.log_sum)
    if not label_smoothing:
        return losses
    return losses + label_smoothing * (against.count * scores - against.total) / (1 + against.count)


def mean_over_directions(
    direction: Direction, query: Anchors, document: Anchors, losses: Callable[[Anchors], Tensor]
) -> Tensor:
    """The weighted losses of pairs with the anchors of one direction, or the mean of both directions, entry by entry.

    losses: a side's anchors -> the losses of the pairs before weighting.
    """
    sides = {"query_to_document": [query], "document_to_query": [document], "both": [query, document]}
    weighted = [side.weight * losses(side) for side in sides[direction]]
    return sum(weighted[1:], weighted[0]) / len(weighted)


def grouped_logsumexp(values: Tensor, numbers: Tensor, length: int) -> Tensor:
    """log of the sum of exp over the values [entries] with each number (int64 [entries]), [length]; NOTHING for none.

    >>> grouped_logsumexp(torch.tensor([0.0, 0.0]), torch.tensor([1, 1]), 2)[1]
    tensor(0.6931)
    """
    highest = values.detach().new_full((length,), NOTHING).scatter_reduce(0, numbers, values.detach(), "amax")
    sums = values.new_zeros(length).index_add(0, numbers, (values - highest[numbers]).exp())
    some = sums > 0
    return torch.where(some, torch.where(some, sums, 1).log() + highest, NOTHING)


def _anchors(against: CandidateSums, num_pairs: Tensor) -> Anchors:
    num_anchors = (num_pairs > 0).sum()
    return Anchors(against, 1 / (num_pairs.to(against.log_sum.dtype) * num_anchors).clamp(min=1))
