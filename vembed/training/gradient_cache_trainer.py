"""GradientCacheTrainer: from a batch to gradients, through the gradient cache or plainly; the numbers are the same."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vembed.grad_cache.cachex.functional import LossScale, cached_backward
from vembed.grad_cache.cachex.tree_utils import move
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.objective import Objective, scale_of
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.freezing import keeps_states, with_fixed_features
from vembed.training.dpo import Reference
from vembed.training.step.chunk_reader import ChunkReader
from vembed.training.step.chunking import SidePartition, chunk_side, describe_chunks, retain_of
from vembed.training.step.not_finite import LossCheck
from vembed.training.step.ranks import JoinedBatch, join_ranks
from vembed.training.step.sizing import StepParts, settle
from vembed.training.teacher import TeacherSource
from vembed.types import Batch, Embeddings, Inputs, ItemRows, Processor, Sides, Targets
from vembed.utils.memory import GIB

_log = logging.getLogger(__name__)
_MAY_BE_AUTO = ("gradient_cache_chunk_size", "gradient_cache_chunk_tokens", "gradient_cache_retain")

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepResult:
    """What one step says: the unscaled loss, how many queries and documents the batch had, the scale (inverse
    temperature) that their scores were multiplied by, and how many texts were cut to the model's limit.

    Over several ranks the loss is that of all batches, and the counts are this rank's."""

    loss: float
    num_queries: int
    num_documents: int
    scale: float
    num_truncated: int = 0


class GradientCacheTrainer:
    """Adds the gradient of the objective over one batch to the model's parameters; the optimiser is not its business.

    A side is divided into chunks of `gradient_cache_chunk_size` rows, or of `gradient_cache_chunk_tokens`. A chunk is
    prepared, moved to `device`, finished by the processor and encoded there under `autocast()`; a stack of its pictures
    and their floats exist for that long only. A side of no more rows than a chunk is one chunk, and when both are, or
    with `use_gradient_cache` off, the step is the plain step. The share `gradient_cache_retain` of all chunks, and the
    last one in any case, is encoded once.
    reference: the model as it was before training, for an objective that compares with it. teacher: what an objective
    learns from, where batches do not bring its embeddings themselves.

    Of several ranks, each with a batch of its own and the same weights, every one calls `step` alike: the loss is of
    all their batches as one, and the mean of their gradients (`average_gradients`) is its gradient.
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
        teacher: TeacherSource | None = None,
    ) -> None:
        self._model = model
        self._processor = processor
        self._objective = objective
        self._settings = settings
        self._settled: GradCacheSettings | None = None
        self._told_of_long_rows = False
        self._autocast = autocast
        self._device = torch.device(device)
        self.reference = reference
        self._teacher = teacher

    def step(self, batch: Batch, *, loss_scale: LossScale = 1.0) -> StepResult:
        """Add the batch's gradient, times `loss_scale` (a factor, or a function such as `GradScaler.scale`).

        Raises NotFiniteError, before any gradient is added, when the loss is not finite; it names the rows.
        """
        settings = self.settle(batch)
        queries, documents = self._chunk(batch.queries, settings), self._chunk(batch.documents, settings)
        has_replays = len(queries.rows) > 1 or len(documents.rows) > 1
        reader = ChunkReader(self._processor, round(settings.gradient_cache_states_gib * GIB) if has_replays else 0)
        joined = join_ranks(move(self._with_teacher(batch), self._device))
        targets = self._with_reference(joined, (queries, documents), reader)
        check = LossCheck(self._model, batch, (queries, documents), joined)

        def loss_of(query_vectors: Embeddings, document_vectors: Embeddings) -> Tensor:
            own = Sides(queries.in_order(query_vectors), documents.in_order(document_vectors))
            every = joined.gather(own)
            loss = self._loss(every, targets)
            check(loss, own, every)
            return loss

        sides = [side.with_encoder(self._encoder(self._model, reader)) for side in (queries, documents)]
        loss = cached_backward(sides, loss_of, loss_scale=loss_scale, retain=retain_of(settings))
        scale = scale_of(self._model.logit_scale.detach())
        num_rows = batch.queries.num_rows, batch.documents.num_rows
        return StepResult(loss.item(), *num_rows, scale.item(), reader.num_truncated)

    def with_settings(self, settings: GradCacheSettings, *, autocast: Autocast) -> "GradientCacheTrainer":
        """The same step on the same model, in other chunks and under another autocast."""
        return GradientCacheTrainer(
            self._model,
            self._processor,
            self._objective,
            settings,
            autocast=autocast,
            device=self._device,
            reference=self.reference,
            teacher=self._teacher,
        )

    @property
    def chunks(self) -> Mapping[str, Any]:  # Any: settings of different types
        """The settings that may be `auto`, in numbers, for a run that goes on from here; none before a batch."""
        return {} if self._settled is None else self._settled.model_dump(include=set(_MAY_BE_AUTO))

    def keep_chunks(self, chunks: Mapping[str, Any]) -> None:
        """Go on with the numbers of `chunks`, whatever is free now."""
        asked = self._settings.model_dump()
        told = [f"{key} {value:g}" for key, value in chunks.items() if asked[key] == "auto"]
        if told:
            _log.info("auto stays what the run began with: %s", ", ".join(told))
        self._settings = self._settings.model_copy(update=dict(chunks))

    @property
    def has_to_choose(self) -> bool:
        """Whether a batch, the first that comes or those of `settle`, decides how large chunks are."""
        asked = self._settings.model_dump(include=set(_MAY_BE_AUTO))
        by_default = self._settings.gradient_cache_retain is None and self._model.checkpoints_gradients
        return self._settled is None and self._settings.use_gradient_cache and (by_default or "auto" in asked.values())

    def settle(self, *batches: Batch) -> GradCacheSettings:
        """The settings with numbers in the place of `auto`: those that suit the first batches it is asked about."""
        if self._settled is None:
            encode = self._encoder(self._model, ChunkReader(self._processor))
            parts = [
                StepParts(self._model, self._processor, encode, sides, self._device, self._objective.classes)
                for sides in ((batch.queries, batch.documents) for batch in batches)
            ]
            self._settled = settle(self._settings, parts)
            if self._settled.use_gradient_cache:
                for words in dict.fromkeys(map(self.describe_chunks, batches)):
                    _log.info(words)
            if self._settled.use_gradient_cache and _has_batch_norm(self._model):
                _log.info(
                    "batch norms keep their statistics, since those of a chunk are not those of the batch;"
                    " train_batch_norm: true needs use_gradient_cache: false"
                )
        return self._settled

    def describe_chunks(self, batch: Batch) -> str:
        """The chunks of a batch in words: of how many rows, and how much of that needs no second forward."""
        settings = self.settle(batch)
        partitions = [chunk_side(side, self._processor, settings) for side in (batch.queries, batch.documents)]
        return f"a batch of {batch.queries.num_rows} rows is {describe_chunks(partitions, settings)}"

    def _chunk(self, side: Inputs | ItemRows, settings: GradCacheSettings) -> SidePartition:
        partition = chunk_side(side, self._processor, settings)
        limit = settings.gradient_cache_chunk_tokens
        assert limit != "auto"
        if limit is not None and partition.most_tokens > limit and not self._told_of_long_rows:
            self._told_of_long_rows = True
            _log.warning(
                "a row has %d tokens, over gradient_cache_chunk_tokens: %d; such a row is a chunk by itself, and memory"
                " follows it (max_length cuts texts, max_pixels or image_size pictures)",
                partition.most_tokens,
                limit,
            )
        return partition

    def _with_teacher(self, batch: Batch) -> Targets:
        return batch.targets if self._teacher is None else replace(batch.targets, teacher=self._teacher.sides(batch))

    def _with_reference(
        self, joined: JoinedBatch, sides: tuple[SidePartition, SidePartition], reader: ChunkReader
    ) -> Targets:
        if self.reference is None:
            return joined.targets
        encode = self._encoder(self.reference.model, reader)
        queries, documents = (side.in_order(self.reference.embed(side.with_encoder(encode))) for side in sides)
        return replace(joined.targets, reference=joined.gather(Sides(queries, documents)))

    def _encoder(self, model: BaseEmbeddingModel, reader: ChunkReader) -> Callable[[Inputs | ItemRows], Embeddings]:
        return lambda chunk: self._encode(model, chunk, reader)

    def _loss(self, embeddings: Sides, targets: Targets) -> Tensor:
        return self._objective(
            embeddings.queries,
            embeddings.documents,
            targets,
            logit_scale=self._model.logit_scale,
            logit_bias=self._model.logit_bias,
        )

    def _encode(self, model: BaseEmbeddingModel, chunk: Inputs | ItemRows, reader: ChunkReader) -> Embeddings:
        inputs = self._processor.finish(move(reader(chunk), self._device))
        comes_again = not torch.is_grad_enabled()  # a chunk that keeps its graph does not
        with self._autocast():
            has_room = not keeps_states(model) or (comes_again and reader.has_room)
            fixed = with_fixed_features(model, inputs) if has_room else inputs
            if comes_again:
                reader.keep(chunk, inputs, fixed)
            embeddings: Embeddings = model(fixed)
        return embeddings


def _has_batch_norm(model: BaseEmbeddingModel) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())
