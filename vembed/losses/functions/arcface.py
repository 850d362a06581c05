"""ArcFace: an item's angle to its class must be smaller than that to every other class by a margin.

Each class c has K centres (sub-centres), and its cosine to an item x is that of the nearest, cos(x, c) = max over k.
For an item x of class y, with theta the angle of that cosine, margin m and scale s,

    loss(x) = -log( exp(s f(theta_y)) / (exp(s f(theta_y)) + sum over classes c other than y of exp(s cos theta_c)) )

    f(theta) = cos(theta + m)          while theta + m <= pi
             = cos(theta) - m sin(m)   beyond, where cos(theta + m) would rise again

averaged over the items of the batch. Deng et al. 2019, https://arxiv.org/abs/1801.07698; sub-centres, which let a class
have several looks and wrong labels a corner of their own, Deng et al. 2020, https://doi.org/10.1007/978-3-030-58621-8_43.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from vembed.losses.class_examples import class_examples, cosine_view, example_mask_strips
from vembed.losses.class_weights import ClassCentres
from vembed.losses.contrasts import NOTHING
from vembed.losses.masks import Masks
from vembed.losses.settings import ArcFaceSettings
from vembed.losses.strips import sum_over_strips
from vembed.types import Embeddings, Targets


def arcface(
    queries: Embeddings, documents: Embeddings, targets: Targets, centres: ClassCentres, settings: ArcFaceSettings
) -> Tensor:
    """The loss, a scalar; 0 without any item that has a class."""
    examples = class_examples(queries, documents, targets, centres)
    num_classes = len(centres.keys)

    def strip_loss(scores: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        cosines = scores.view(len(scores), num_classes, centres.per_class).amax(dim=2)
        weights = examples.weights[masks.start : masks.start + len(scores)]
        return (weights * _losses(cosines, masks.positive, settings)).sum(), weights.sum()

    view = cosine_view(examples.vectors, centres.vectors)
    total, count = sum_over_strips(view, example_mask_strips(examples, num_classes), strip_loss)
    return total / count.clamp(min=1)


def _losses(cosines: Tensor, positive: Tensor, settings: ArcFaceSettings) -> Tensor:
    """The losses [examples] of cosines [examples, classes]; of an item of several classes the mean over them."""
    scale = settings.class_scale
    against = (scale * cosines).masked_fill(positive, NOTHING).logsumexp(dim=1)
    rows, classes = positive.nonzero(as_tuple=True)
    own = scale * with_margin(cosines[rows, classes], settings.arcface_margin)
    shares = positive.sum(dim=1)[rows]
    losses = -functional.logsigmoid(own - against[rows])
    return cosines.new_zeros(len(cosines)).index_add(0, rows, losses / shares)


def with_margin(cosines: Tensor, margin: float) -> Tensor:
    """f of the angles that have these cosines, of any shape.

    >>> with_margin(torch.tensor([1.0, 0.0, -1.0]), math.pi / 6)
    tensor([ 0.8660, -0.5000, -1.2618])
    """
    squares = 1 - cosines.square()
    some = squares > 0  # at an angle of 0 the root has no derivative
    sines = torch.where(some, torch.where(some, squares, 1).sqrt(), 0)
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines >= -math.cos(margin), shifted, cosines - margin * math.sin(margin))
