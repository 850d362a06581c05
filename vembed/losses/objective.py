"""What a step minimises: a loss over the scores of a batch, and how those scores are made from embeddings."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import num_rows, take_rows
from vembed.scoring import Scorer, at_least_float32
from vembed.types import Embeddings, Targets

MAX_SCALE = 100.0
MAX_LOG_SCALE = math.log(MAX_SCALE)


@dataclass(frozen=True)
class ScoreView:
    """The scores of all queries against all documents, scale * score + bias, made when and as far as they are read.

    scale: [1], the inverse of the temperature. bias: [1] or None.
    """

    queries: Embeddings
    documents: Embeddings
    scorer: Scorer
    scale: Tensor
    bias: Tensor | None = None

    def dense(self) -> Tensor:
        """All scores, [queries, documents]."""
        return self._scores(self.queries)

    def strips(self, rows: int) -> Iterator[Tensor]:
        """The scores of `rows` queries after the other, each [rows, documents], the last strip perhaps smaller."""
        for start in range(0, num_rows(self.queries), rows):
            yield self._scores(take_rows(self.queries, start, start + rows))

    def _scores(self, queries: Embeddings) -> Tensor:
        scores = self.scorer(queries, self.documents) * self.scale
        return scores if self.bias is None else scores + self.bias


LossFunction = Callable[[ScoreView, Targets], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss and the scorer whose scores it reads. It owns no parameters: temperature and bias are the model's."""

    loss: LossFunction
    scorer: Scorer

    def __call__(
        self,
        queries: Embeddings,
        documents: Embeddings,
        targets: Targets,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar. logit_scale: [1], log of the inverse temperature; logit_bias: [1], added to scores."""
        view = ScoreView(queries, documents, self.scorer, scale_of(logit_scale), logit_bias)
        return self.loss(view, targets)


def scale_of(logit_scale: Tensor) -> Tensor:
    """exp(logit_scale) [1], at most 100, at least float32.

    The limit is set before the exponential and lets the gradient through where it is met exactly, so that a
    temperature at the limit can come back; `limit_scale` keeps it from going beyond.

    >>> scale_of(torch.tensor([9.0])).round()
    tensor([100.])
    """
    log = at_least_float32(logit_scale)
    limit = torch.full_like(log, MAX_LOG_SCALE)
    return torch.where(log > limit, limit, log).exp()


@torch.no_grad()
def limit_scale(logit_scale: Tensor) -> None:
    """Bring the parameter [1] back to the log of 100 in place; to be called after each step of the optimiser."""
    logit_scale.clamp_(max=MAX_LOG_SCALE)
