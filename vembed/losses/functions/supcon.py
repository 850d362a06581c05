"""SupCon: InfoNCE whose positives stand in each other's denominators.

For an anchor a with positives P, negatives N and scaled scores s,

    loss(a) = mean over p in P of  -log( exp(s_ap) / sum over c in P and N of exp(s_ac) )

averaged over anchors; with one positive per anchor it equals InfoNCE. The average of logarithms stands outside
(L_out of the paper). Khosla et al. 2020, https://arxiv.org/abs/2004.11362.
"""

from functools import partial

from torch import Tensor

from vembed.losses.contrasts import Candidates, contrasts
from vembed.losses.masks import Masks, mask_strips
from vembed.losses.objective import ScoreView
from vembed.losses.settings import SupConSettings
from vembed.losses.softmax import Anchors, mean_over_directions, sum_over_pairs
from vembed.types import Targets


def supcon(view: ScoreView, targets: Targets, settings: SupConSettings) -> Tensor:
    """The loss in the direction of `settings.loss_direction`, a scalar; `both` is the mean of the two."""
    columns = settings.loss_direction != "query_to_document"
    found = contrasts(view, partial(mask_strips, targets), _all_valid, columns=columns)
    return sum_over_pairs(found, partial(_losses, settings=settings), found.by_query, found.by_document)


def _all_valid(_scores: Tensor, masks: Masks) -> Candidates:
    """Positives stand in the denominator too."""
    return Candidates(masks.valid)


def _losses(scores: Tensor, query: Anchors, document: Anchors, settings: SupConSettings) -> Tensor:
    """The weighted losses of pairs with these scores."""
    return mean_over_directions(settings.loss_direction, query, document, lambda side: side.against.log_sum - scores)
