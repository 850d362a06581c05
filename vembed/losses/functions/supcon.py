"""SupCon: InfoNCE whose positives stand in each other's denominators.

For an anchor a with positives P, negatives N and scaled scores s,

    loss(a) = mean over p in P of  -log( exp(s_ap) / sum over c in P and N of exp(s_ac) )

averaged over anchors; with one positive per anchor it equals InfoNCE. The average of logarithms stands outside
(L_out of the paper). Khosla et al. 2020, https://arxiv.org/abs/2004.11362.
"""

from functools import partial

from torch import Tensor

from vembed.losses.contrasts import Contrasts, contrasts
from vembed.losses.masks import mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import SupConSettings
from vembed.losses.softmax import log_sum_by, mean_over_anchors
from vembed.types import Targets


def supcon(view: ScoreView, targets: Targets, settings: SupConSettings) -> Tensor:
    """The loss in the direction of `settings.loss_direction`, a scalar; `both` is the mean of the two."""
    direction = settings.loss_direction
    found = contrasts(view, partial(mask_strips, targets), columns=direction != "query_to_document")
    sides = []
    if direction != "document_to_query":
        sides.append(_side(found, found.queries, found.by_query.log_sum))
    if direction != "query_to_document":
        sides.append(_side(found, found.documents, found.by_document.log_sum))
    return sum(sides[1:], sides[0]) / len(sides)


def _side(found: Contrasts, anchors: Tensor, against: Tensor) -> Tensor:
    """The mean over one side's anchors; anchors: int64 [pairs], against: [anchors]."""
    everything = log_sum_by(found.scores, anchors, len(against)).logaddexp(against)
    return mean_over_anchors(everything[anchors] - found.scores, anchors, len(against))
