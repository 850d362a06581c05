"""The objective of a step: a loss over the scores of a batch, and how those scores are made from embeddings."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vembed.errors import DataError
from vembed.grad_cache.cachex.tree_utils import num_rows, select_rows, take_rows
from vembed.losses.class_weights import ClassCentres, ClassWeights
from vembed.scoring import Scorer, at_least_float32, inner_product_vectors
from vembed.types import Embeddings, Targets

MAX_SCALE = 100.0
MAX_LOG_SCALE = math.log(MAX_SCALE)
_PAIRS_AT_ONCE = 8  # pairs of multi-vector rows: all of their sides are scored against each other


@dataclass(frozen=True)
class Teacher:
    """The scorer of a teacher's embeddings (`Targets.teacher`), and their width, if it is known.

    temperature: their scores are divided by it where they are compared with those of the model that learns.
    """

    scorer: Scorer
    temperature: float = 1.0
    dim: int | None = None


@dataclass(frozen=True)
class ScoreView:
    """The scores of all queries against all documents, scale * score + bias, made when and as far as they are read.

    scale: [1], the inverse of the temperature. bias: [1] or None. centres: of the classes that the loss learns weights
    for, if it does. teacher: of the batch's teacher embeddings, if any.
    """

    queries: Embeddings
    documents: Embeddings
    scorer: Scorer
    scale: Tensor
    bias: Tensor | None = None
    centres: ClassCentres | None = None
    teacher: Teacher | None = None

    @property
    def num_scores(self) -> int:
        """Queries times documents."""
        return num_rows(self.queries) * num_rows(self.documents)

    def dense(self) -> Tensor:
        """All scores, [queries, documents]."""
        return self.scale_and_shift(self.scorer(self.queries, self.documents))

    def strips(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The scores of `rows` queries after the other, each [rows, documents], the last strip perhaps smaller.

        Each with a bool of the same shape: False where a side has no real token, so that its score says nothing.
        """
        for start in range(0, num_rows(self.queries), rows):
            real = real_scores(take_rows(self.queries, start, start + rows), self.documents)
            yield self.rows(start, start + rows), real

    def pairs(self, queries: Tensor, documents: Tensor) -> Tensor:
        """The scores [pairs] of a query and a document each, by their numbers (int64 [pairs])."""
        return self.scale_and_shift(paired_scores(self, queries, documents))

    def rows(self, start: int, stop: int) -> Tensor:
        """The scores of the queries from number `start` to `stop` (not included), [rows, documents]."""
        return self.scale_and_shift(self.scorer(take_rows(self.queries, start, stop), self.documents))

    def of_teacher(self, targets: Targets) -> "ScoreView":
        """The teacher's scores of the batch, over its temperature. Raises DataError without its embeddings."""
        if self.teacher is None or targets.teacher is None:
            raise DataError("the loss compares with a teacher, and the batch brings no embeddings of one")
        scale = torch.full_like(self.scale.detach(), 1 / self.teacher.temperature)
        return ScoreView(targets.teacher.queries, targets.teacher.documents, self.teacher.scorer, scale)

    def unscaled(self) -> "ScoreView":
        """The scores as the scorer gives them: neither temperature nor bias."""
        return replace(self, scale=torch.ones_like(self.scale), bias=None)

    def among_queries(self) -> "ScoreView":
        """The scores of all queries against all queries."""
        return replace(self, documents=self.queries)

    def among_documents(self) -> "ScoreView":
        """The scores of all documents against all documents."""
        return replace(self, queries=self.documents)

    def scale_and_shift(self, scores: Tensor) -> Tensor:
        """Scores as the scorer gives them, of any shape, times the scale (inverse temperature) and plus the bias."""
        scaled = scores * self.scale
        return scaled if self.bias is None else scaled + self.bias


LossFunction = Callable[[ScoreView, Targets], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss and the scorer whose scores it reads. Temperature and bias are the model's.

    widths: those that Matryoshka trains; none without it. classes: the weights of a loss that learns some, the only
    parameters that an objective owns. teacher: of the embeddings in `Targets.teacher`, if it reads any.
    """

    loss: LossFunction
    scorer: Scorer
    widths: tuple[int, ...] = ()
    classes: ClassWeights | None = None
    teacher: Teacher | None = None

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
        centres = None if self.classes is None else self.classes()
        scale = scale_of(logit_scale)
        view = ScoreView(queries, documents, self.scorer, scale, logit_bias, centres, self.teacher)
        return self.loss(view, targets)


def real_scores(queries: Embeddings, documents: Embeddings) -> Tensor:
    """Bool [queries, documents]: both sides have a real token (a single vector always is one)."""
    return has_tokens(queries)[:, None] & has_tokens(documents)


def has_tokens(embeddings: Embeddings) -> Tensor:
    """Bool [rows]: True if a row has a real token (a single vector always is one)."""
    if embeddings.mask is not None:
        return embeddings.mask.any(dim=1)
    return torch.ones(len(embeddings.vectors), dtype=torch.bool, device=embeddings.vectors.device)


def paired_scores(view: ScoreView, queries: Tensor, documents: Tensor) -> Tensor:
    """The scores [pairs] as the scorer gives them, of the queries and documents with these numbers (int64 [pairs])."""
    vectors = inner_product_vectors(view.scorer, view.queries, view.documents)
    if vectors is not None:
        return (vectors[0][queries] * vectors[1][documents]).sum(dim=1)
    parts = zip(torch.split(queries, _PAIRS_AT_ONCE), torch.split(documents, _PAIRS_AT_ONCE), strict=True)
    scores = [
        view.scorer(select_rows(view.queries, some), select_rows(view.documents, others)).diagonal()
        for some, others in parts
    ]
    return torch.cat(scores) if scores else at_least_float32(view.queries.vectors).new_zeros(0)


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
