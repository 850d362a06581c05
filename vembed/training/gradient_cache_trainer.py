"""GradientCacheTrainer: from a batch to gradients, through the gradient cache or plainly; the numbers are the same."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vembed.errors import NotFiniteError
from vembed.grad_cache.cachex.functional import ChunkedSide, LossScale, cached_backward
from vembed.grad_cache.cachex.tree_utils import concat_rows, move, take_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.objective import Objective, scale_of
from vembed.model.base import BaseEmbeddingModel
from vembed.training.dpo import Reference
from vembed.types import Batch, Embeddings, Inputs, Processor, Sides, Targets

MOST_NAMED = 8

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepResult:
    """What one step says: the unscaled loss of the batch, how many queries and documents it had, and the scale
    (inverse temperature) that their scores were multiplied by."""

    loss: float
    num_queries: int
    num_documents: int
    scale: float


class GradientCacheTrainer:
    """Adds the gradient of the objective over one batch to the model's parameters; the optimiser is not its business.

    A side is cut into chunks of `gradient_cache_chunk_size` rows. A chunk is moved to `device`, finished by the
    processor and encoded there under `autocast()`; floats of its pictures exist for that long only. A side of no more
    rows than a chunk is one chunk, and when both are, or with `use_gradient_cache` off, the step is the plain step.
    reference: the model as it was before training, for an objective that compares with it.
    """

    def __init__(
        self,
        model: BaseEmbeddingModel,
        processor: Processor,
        objective: Objective,
        settings: GradCacheSettings,
        *,
        autocast: Autocast = nullcontext,
        device: torch.device | str = "cpu",
        reference: Reference | None = None,
    ) -> None:
        self._model = model
        self._processor = processor
        self._objective = objective
        self._chunk_size = settings.gradient_cache_chunk_size if settings.use_gradient_cache else None
        self._autocast = autocast
        self._device = torch.device(device)
        self.reference = reference

    def step(self, batch: Batch, *, loss_scale: LossScale = 1.0) -> StepResult:
        """Add the batch's gradient, times `loss_scale` (a factor, or a function such as `GradScaler.scale`).

        Raises NotFiniteError, before any gradient is added, when the loss is not finite; it names the rows.
        """
        targets = self._with_reference(move(batch.targets, self._device), batch)

        def loss_of(queries: Embeddings, documents: Embeddings) -> Tensor:
            loss = self._loss(queries, documents, targets)
            if not math.isfinite(loss.item()):
                raise NotFiniteError(_not_finite(batch, queries, documents))
            return loss

        loss = cached_backward(self._sides(self._model, batch), loss_of, loss_scale=loss_scale)
        scale = scale_of(self._model.logit_scale.detach())
        return StepResult(loss.item(), batch.queries.num_rows, batch.documents.num_rows, scale.item())

    def _sides(self, model: BaseEmbeddingModel, batch: Batch) -> list[ChunkedSide]:
        encode = partial(self._encode, model)
        return [ChunkedSide(encode, inputs, self._chunk_size) for inputs in (batch.queries, batch.documents)]

    def _with_reference(self, targets: Targets, batch: Batch) -> Targets:
        if self.reference is None:
            return targets
        sides = map(self.reference.embed, self._sides(self.reference.model, batch))
        return replace(targets, reference=Sides(*sides))

    def _loss(self, queries: Embeddings, documents: Embeddings, targets: Targets) -> Tensor:
        return self._objective(
            queries,
            documents,
            targets,
            logit_scale=self._model.logit_scale,
            logit_bias=self._model.logit_bias,
        )

    def _encode(self, model: BaseEmbeddingModel, chunk: Inputs) -> Embeddings:
        inputs = self._processor.finish(move(chunk, self._device))
        with self._autocast():
            embeddings: Embeddings = model(inputs)
        return embeddings


def _not_finite(batch: Batch, queries: Embeddings, documents: Embeddings) -> str:
    """What to tell the user: which rows have embeddings that are not finite, or that it is none of them."""
    bad = _bad_rows(queries) | _rows_naming(batch.targets, _bad_rows(documents))
    named = [origin for row, origin in enumerate(batch.origins) if bad[row]]
    advice = "lower the learning rate, or set mixed_precision: no"
    if not named:
        return f"the loss is not finite though all embeddings are (temperature or bias out of range?); {advice}"
    return f"the loss is not finite: the embeddings of {name_rows(named)} are not; {advice}"


def name_rows(origins: Sequence[str]) -> str:
    """Where rows come from, the first few of them: `train.jsonl:2, train.jsonl:5 and 3 more`."""
    more = f" and {len(origins) - MOST_NAMED} more" if len(origins) > MOST_NAMED else ""
    return f"{', '.join(origins[:MOST_NAMED])}{more}"


def _bad_rows(embeddings: Embeddings) -> Tensor:
    """Bool [rows], on the host: True where a vector is not finite (padding does not count)."""
    bad = ~embeddings.vectors.isfinite().all(dim=-1)  # [rows] or [rows, tokens]
    if embeddings.mask is not None:
        bad &= embeddings.mask
    return bad.flatten(1).any(dim=1).cpu() if bad.ndim > 1 else bad.cpu()


def _rows_naming(targets: Targets, documents: Tensor) -> Tensor:
    """Bool [queries]: the rows that name one of the `documents` (bool [documents]) as positive or negative."""
    rows = range(len(targets.query_hashes))
    own = [
        concat_rows([take_rows(side, row, row + 1).values for side in (targets.positives, targets.negatives)])
        for row in rows
    ]
    return torch.tensor([bool(documents[columns].any()) for columns in own])
