"""ColBERT: InfoNCE over late interaction, each query token's best match summed over the query's tokens (MaxSim).

Formula and options are InfoNCE's; the scores are MaxSim's, padding masked on both sides. `maxsim_reduction: mean`
divides a query's scores by its number of tokens, so that long and short queries have the same temperature; it changes
no query's ranking. Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832.
"""

from dataclasses import replace

from torch import Tensor

from vembed.losses.functions.infonce import infonce
from vembed.losses.objective import ScoreView
from vembed.losses.settings import ColBERTSettings
from vembed.scoring import maxsim
from vembed.types import Embeddings, Targets


def colbert(view: ScoreView, targets: Targets, settings: ColBERTSettings) -> Tensor:
    """The loss, a scalar."""
    if settings.maxsim_reduction == "mean":
        view = replace(view, scorer=mean_over_tokens)
    return infonce(view, targets, settings)


def mean_over_tokens(queries: Embeddings, documents: Embeddings) -> Tensor:
    """MaxSim [queries, documents], the mean over the query's real tokens instead of the sum.

    >>> import torch
    >>> query = Embeddings(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> mean_over_tokens(query, Embeddings(torch.tensor([[[1.0, 0.0]]])))
    tensor([[0.5000]])
    """
    num_tokens = (
        queries.vectors.shape[1] if queries.mask is None else queries.mask.sum(dim=1, keepdim=True).clamp(min=1)
    )
    return maxsim(queries, documents) / num_tokens
