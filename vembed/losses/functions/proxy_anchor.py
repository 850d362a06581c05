"""Proxy-Anchor: each class has a proxy, which pulls the items of its class and pushes all others, the hard ones most.

For the proxies P of all classes, P+ those of classes in the batch, the items X of the batch, X_p of p's class, scores s
(cosine), margin d and scale a,

    loss =   1/|P+| * sum over p in P+ of  log( 1 + sum over x in X_p  of exp(-a (s_xp - d)) )
           + 1/|P|  * sum over p in P  of  log( 1 + sum over x not in X_p of exp(a (s_xp + d)) )

Kim, Kim, Cho and Kwak 2020, https://arxiv.org/abs/2003.13911.
"""

import torch
from torch import Tensor

from vembed.losses.class_examples import class_examples, class_mask_strips, cosine_view
from vembed.losses.class_weights import ClassCentres
from vembed.losses.masks import Masks
from vembed.losses.settings import ProxyAnchorSettings
from vembed.losses.strips import sum_over_strips
from vembed.types import Embeddings, Targets


def proxy_anchor(
    queries: Embeddings, documents: Embeddings, targets: Targets, centres: ClassCentres, settings: ProxyAnchorSettings
) -> Tensor:
    """The loss, a scalar; 0 without any item that has a class."""
    examples = class_examples(queries, documents, targets, centres)
    num_classes, num_present = len(centres.keys), len(torch.unique(examples.labels[1]))
    scale, margin, log_weights = settings.class_scale, settings.proxy_margin, examples.weights.log()

    def strip_loss(scores: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        pull = _log1p_sum_exp(log_weights - scale * (scores - margin), masks.positive)
        push = _log1p_sum_exp(log_weights + scale * (scores + margin), masks.negative)
        return pull.sum() / max(1, num_present) + push.sum() / num_classes, scores.new_zeros(())

    view = cosine_view(centres.vectors, examples.vectors)
    return sum_over_strips(view, class_mask_strips(examples, num_classes), strip_loss)[0]


def _log1p_sum_exp(values: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + sum of exp) over the chosen (bool) ones of values [rows, columns], [rows].

    >>> _log1p_sum_exp(torch.zeros(1, 3), torch.tensor([[True, True, False]]))  # log 3
    tensor([1.0986])
    """
    one = values.new_zeros(len(values), 1)
    return torch.cat([one, values.masked_fill(~chosen, float("-inf"))], dim=1).logsumexp(dim=1)
