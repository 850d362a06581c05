"""Sigmoid (SigLIP): every query and document are a question of their own, answered with yes or no.

    loss = 1 / queries * sum over queries q and documents d of  log(1 + exp(-z_qd s_qd))

with z = 1 for positives and -1 for negatives; s holds the learned scale and bias. No normalisation over the batch, so
that small batches do well too. Zhai, Mustafa, Kolesnikov and Beyer 2023, https://arxiv.org/abs/2303.15343.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import SigmoidSettings
from vembed.losses.strips import sum_over_strips
from vembed.types import Targets


def sigmoid(view: ScoreView, targets: Targets, settings: SigmoidSettings) -> Tensor:
    """The loss, a scalar."""
    masks = partial(mask_strips, targets, private_negatives=settings.private_negatives)
    total, num_queries = sum_over_strips(view, masks, _strip_loss)
    return total / num_queries


def _strip_loss(scores: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    costs = functional.softplus(torch.where(masks.positive, -scores, scores))
    return costs.masked_fill(~masks.valid, 0).sum(), scores.new_tensor(len(scores))
