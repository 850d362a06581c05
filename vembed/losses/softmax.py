"""Small sums that softmax losses are made of: over the pairs, anchors and candidates of `contrasts`."""

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.contrasts import NOTHING, Against


def pair_losses(scores: Tensor, against: Against, label_smoothing: float = 0.0) -> Tensor:
    """-log of the softmax of each pair's score [pairs] among itself and what stands against it, [pairs].

    With label smoothing e, a share e of the target is spread evenly over the pair and all of its candidates.

    >>> against = Against(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([1.0]))
    >>> pair_losses(torch.tensor([1.0]), against)  # log 2
    tensor([0.6931])
    """
    losses = -functional.logsigmoid(scores - against.log_sum)
    if not label_smoothing:
        return losses
    return losses + label_smoothing * (against.count * scores - against.total) / (1 + against.count)


def mean_over_anchors(losses: Tensor, anchors: Tensor, num_anchors: int) -> Tensor:
    """The mean over the anchors that have a pair of the mean over an anchor's pairs, a scalar; 0 without pairs.

    losses, anchors (int64, each pair's anchor): [pairs].

    >>> mean_over_anchors(torch.tensor([1.0, 3.0, 6.0]), torch.tensor([0, 0, 2]), 3)
    tensor(4.)
    """
    num_pairs = torch.bincount(anchors, minlength=num_anchors)
    order = anchors.argsort(stable=True)
    return (losses[order] / num_pairs[anchors[order]]).sum() / (num_pairs > 0).sum().clamp(min=1)


def log_sum_by(values: Tensor, numbers: Tensor, length: int) -> Tensor:
    """log of the sum of exp over the values [entries] with each number (int64 [entries]), [length]; NOTHING for none.

    >>> log_sum_by(torch.tensor([0.0, 0.0]), torch.tensor([1, 1]), 2)[1]
    tensor(0.6931)
    """
    highest = values.detach().new_full((length,), NOTHING).scatter_reduce(0, numbers, values.detach(), "amax")
    sums = values.new_zeros(length).index_add(0, numbers, (values - highest[numbers]).exp())
    some = sums > 0
    return torch.where(some, torch.where(some, sums, 1).log() + highest, NOTHING)
