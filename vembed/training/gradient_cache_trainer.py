"""GradientCacheTrainer: from a batch to gradients, through the gradient cache or plainly; the numbers are the same."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vembed.grad_cache.cachex.functional import LossScale, cached_backward
from vembed.grad_cache.cachex.tree_utils import move
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.objective import Objective, scale_of
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.freezing import keeps_states, with_fixed_features
from vembed.training.dpo import Reference
from vembed.training.step.chunk_reader import ChunkReader
from vembed.training.step.chunking import Chunking, Side, SidePartition, chunk_batch
from vembed.training.step.memory_fit import StepParts
from vembed.training.step.not_finite import LossCheck
from vembed.training.step.ranks import JoinedBatch, join_ranks
from vembed.training.step.sizing import ChunkingFinder
from vembed.training.teacher import TeacherSource
from vembed.types import Batch, Embeddings, Processor, Sides, Targets

_log = logging.getLogger(__name__)

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

    A step is, in this order:

        chunk_batch         both sides in chunks, of `gradient_cache_chunk_size` rows or `gradient_cache_chunk_tokens`
        join_ranks          the targets of all ranks as one, with a teacher's embeddings where one is learned from
        Reference.embed     what the model was before training makes of each chunk, for an objective that compares
        Objective           the loss over all rows, once they are embedded; LossCheck refuses one that is not finite
        cached_backward     its gradient, chunk by chunk

    A chunk is prepared, moved to `device`, finished by the processor and encoded there under `autocast()`; a stack of
    its pictures and their floats exist for that long only. A side of no more rows than a chunk is one chunk, and when
    both are, or with `use_gradient_cache` off, the step is the plain step. The share `gradient_cache_retain` of all
    chunks, and the last one in any case, is encoded once.
    reference: the model as it was before training. teacher: what an objective learns from, where batches do not bring
    its embeddings themselves.

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
        self.chunking_finder = ChunkingFinder(settings, model)
        self._told_of_long_rows = False
        self._autocast = autocast
        self._device = torch.device(device)
        self.reference = reference
        self._teacher = teacher

    def step(self, batch: Batch, *, loss_scale: LossScale = 1.0) -> StepResult:
        """Add the batch's gradient, times `loss_scale` (a factor, or a function such as `GradScaler.scale`).

        Raises NotFiniteError, before any gradient is added, when the loss is not finite; it names the rows.
        """
        chunking = self.find_chunking(batch)
        queries, documents = sides = self._chunk(batch, chunking)
        has_replays = any(len(side.rows) > 1 for side in sides)  # else nothing is read twice
        reader = ChunkReader(self._processor, chunking.most_state_bytes if has_replays else 0)
        joined = join_ranks(move(self._with_teacher(batch), self._device))
        targets = self._with_reference(joined, sides, reader)
        check = LossCheck(self._model, batch, sides, joined)

        def loss_of(query_vectors: Embeddings, document_vectors: Embeddings) -> Tensor:
            own = Sides(queries.in_order(query_vectors), documents.in_order(document_vectors))  # [own rows, dim]
            every = joined.gather(own)  # [rows of all ranks, dim]
            loss = self._loss(every, targets)
            check(loss, own, every)
            return loss

        encode = self._encoder(self._model, reader)
        chunked = [side.with_encoder(encode) for side in sides]
        loss = cached_backward(chunked, loss_of, loss_scale=loss_scale, retain=chunking.retain)
        scale = scale_of(self._model.logit_scale.detach())
        num_rows = batch.queries.num_rows, batch.documents.num_rows
        return StepResult(loss.item(), *num_rows, scale.item(), reader.num_truncated)

    def find_chunking(self, *batches: Batch) -> Chunking:
        """How batches are divided into chunks: as suits the first ones that it is asked about."""
        return self.chunking_finder.find([self._parts(batch) for batch in batches])

    def with_chunking(self, chunking: Chunking, *, autocast: Autocast) -> "GradientCacheTrainer":
        """The same step on the same model, in these chunks and under another autocast."""
        trainer = GradientCacheTrainer(
            self._model,
            self._processor,
            self._objective,
            GradCacheSettings(),
            autocast=autocast,
            device=self._device,
            reference=self.reference,
            teacher=self._teacher,
        )
        trainer.chunking_finder.fix(chunking)
        return trainer

    def _chunk(self, batch: Batch, chunking: Chunking) -> tuple[SidePartition, SidePartition]:
        sides, limit = chunk_batch(batch, self._processor, chunking), chunking.chunk_tokens
        over = [side.most_tokens for side in sides if limit is not None and side.most_tokens > limit]
        if over and not self._told_of_long_rows:
            self._told_of_long_rows = True
            _log.warning(
                "a row has %d tokens, over gradient_cache_chunk_tokens: %d; such a row is a chunk by itself, and memory"
                " follows it (max_length cuts texts, max_pixels or image_size pictures)",
                over[0],
                limit,
            )
        return sides

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

    def _loss(self, embeddings: Sides, targets: Targets) -> Tensor:
        return self._objective(
            embeddings.queries,
            embeddings.documents,
            targets,
            logit_scale=self._model.logit_scale,
            logit_bias=self._model.logit_bias,
        )

    def _encoder(self, model: BaseEmbeddingModel, reader: ChunkReader) -> Callable[[Side], Embeddings]:
        return lambda chunk: self._encode(model, chunk, reader)

    def _encode(self, model: BaseEmbeddingModel, chunk: Side, reader: ChunkReader) -> Embeddings:
        inputs = self._processor.finish(move(reader(chunk), self._device))
        comes_again = not torch.is_grad_enabled()  # a chunk that keeps its graph does not
        with self._autocast():
            has_room = not keeps_states(model) or (comes_again and reader.has_room)
            fixed = with_fixed_features(model, inputs) if has_room else inputs
            if comes_again:
                reader.keep(chunk, inputs, fixed)
            embeddings: Embeddings = model(fixed)
        return embeddings

    def _parts(self, batch: Batch) -> StepParts:
        encode = self._encoder(self._model, ChunkReader(self._processor))
        sides = (batch.queries, batch.documents)
        return StepParts(self._model, self._processor, encode, sides, self._device, self._objective.classes)
