"""Contrastive: pairs with a label 1 are pulled together, pairs with 0 pushed apart as far as a margin.

    loss = mean over pairs of  1/2 ( y d^2 + (1 - y) max(0, margin - d)^2 ),   d = 1 - cosine

Hadsell, Chopra and LeCun 2006, https://doi.org/10.1109/CVPR.2006.100.
"""

from torch import Tensor
from torch.nn import functional

from vembed.losses.graded_pairs import graded_pairs
from vembed.losses.objective import ScoreView
from vembed.losses.settings import ContrastiveSettings
from vembed.types import Targets


def contrastive(view: ScoreView, targets: Targets, settings: ContrastiveSettings) -> Tensor:
    """The loss, a scalar."""
    pairs = graded_pairs(targets, "loss_type contrastive")
    distances = 1 - view.unscaled().pairs(pairs.queries, pairs.documents)
    labels = pairs.grades.to(distances.dtype)
    apart = functional.relu(settings.margin - distances)
    return (labels * distances.square() + (1 - labels) * apart.square()).mean() / 2
