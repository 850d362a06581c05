"""GradientCacheTrainer: the gradient of the loss over one batch, by the gradient cache or by a plain backward.

Both give the same numbers; the cache needs the memory of one chunk, and a second forward.
"""

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
from vembed.training.distillation.teacher import TeacherSource
from vembed.training.dpo import Reference
from vembed.training.step.auto_chunking import ChunkingFinder
from vembed.training.step.chunk_reader import ChunkReader
from vembed.training.step.chunking import Chunking, Side, SidePartition, chunk_batch
from vembed.training.step.memory_fit import StepParts
from vembed.training.step.not_finite import LossCheck
from vembed.training.step.ranks import JoinedBatch, join_ranks
from vembed.types import Batch, Embeddings, Processor, Sides, Targets

_log = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepResult:
    """The unscaled loss of one step, and counts of its batch.

    scale: the inverse temperature that scores were multiplied by. num_truncated: texts that were cut to the model's
    limit. Over several ranks the loss is that of all their rows, and the counts are this rank's.
    """

    loss: float
    num_queries: int
    num_documents: int
    scale: float
    num_truncated: int = 0


class GradientCacheTrainer:
    """Forward and backward of one batch: adds the gradient of the loss to `.grad`. The optimiser is the loop's.

    A step is, in this order:

        chunk_batch         both sides in chunks, of `gradient_cache_chunk_size` rows or `gradient_cache_chunk_tokens`
        join_ranks          the targets of all ranks as one, with the teacher's embeddings for distillation
        Reference.embed     the reference model's embeddings of each chunk, for preference losses (DPO)
        Objective           the loss over all rows, once they are embedded; LossCheck refuses one that is not finite
        cached_backward     its gradient, chunk by chunk

    A chunk is prepared on the host, moved to `device`, finished by the processor and encoded there under `autocast()`;
    a stack of its pictures and their floats exist for that long only. A side of no more rows than a chunk is one chunk,
    and when both are, or with `use_gradient_cache` off, the step is the plain one, of one forward. The share
    `gradient_cache_retain` of all chunks, and the last one in any case, keeps its graph and needs no second forward.
    reference: the model as it was before training. teacher: gives its embeddings of a batch, where batches do not bring
    them themselves.

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
        self._warned_of_long_rows = False
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
        has_second_forward = any(len(side.rows) > 1 for side in sides)  # the plain step keeps no hidden states
        reader = ChunkReader(self._processor, chunking.max_hidden_state_bytes if has_second_forward else 0)
        joined = join_ranks(move(self._with_teacher(batch), self._device))
        targets = self._with_reference(joined, sides, reader)
        check = LossCheck(self._model, batch, sides, joined)

        def loss_of(query_vectors: Embeddings, document_vectors: Embeddings) -> Tensor:
            own = Sides(queries.restore_order(query_vectors), documents.restore_order(document_vectors))  # [rows, dim]
            gathered = joined.gather(own)  # [rows of all ranks, dim]
            loss = self._loss(gathered, targets)
            check(loss, own, gathered)  # here, before the backward: a gradient of NaN would spoil what is accumulated
            return loss

        encode = self._encoder(self._model, reader)
        chunked = [side.with_encoder(encode) for side in sides]
        loss = cached_backward(chunked, loss_of, loss_scale=loss_scale, retain=chunking.retain)
        scale = scale_of(self._model.logit_scale.detach())
        num_rows = batch.queries.num_rows, batch.documents.num_rows
        return StepResult(loss.item(), *num_rows, scale.item(), reader.num_truncated)

    def find_chunking(self, *batches: Batch) -> Chunking:
        """The Chunking of the run. Where settings say `auto`, the batches of the first call decide it for all."""
        return self.chunking_finder.find([self._step_parts(batch) for batch in batches])

    def with_chunking(self, chunking: Chunking, *, autocast: Autocast) -> "GradientCacheTrainer":
        """A trainer that takes the same step on the same model in these chunks, under another autocast."""
        trainer = GradientCacheTrainer(
            self._model,
            self._processor,
            self._objective,
            GradCacheSettings(),  # not read: the Chunking is set below
            autocast=autocast,
            device=self._device,
            reference=self.reference,
            teacher=self._teacher,
        )
        trainer.chunking_finder.set(chunking)
        return trainer

    def _chunk(self, batch: Batch, chunking: Chunking) -> tuple[SidePartition, SidePartition]:
        """Both sides in chunks; warns once of a row that has more tokens than a chunk may have."""
        sides, limit = chunk_batch(batch, self._processor, chunking), chunking.chunk_tokens
        over = [side.max_row_tokens for side in sides if limit is not None and side.max_row_tokens > limit]
        if over and not self._warned_of_long_rows:
            self._warned_of_long_rows = True
            _log.warning(
                "a row has %d tokens, over gradient_cache_chunk_tokens: %d; such a row is a chunk by itself, and memory"
                " follows it (max_length cuts texts, max_pixels or image_size pictures)",
                over[0],
                limit,
            )
        return sides

    def _with_teacher(self, batch: Batch) -> Targets:
        if self._teacher is None:
            return batch.targets
        return replace(batch.targets, teacher=self._teacher.embeddings(batch))

    def _with_reference(
        self, joined: JoinedBatch, sides: tuple[SidePartition, SidePartition], reader: ChunkReader
    ) -> Targets:
        """The joined targets with the reference's embeddings, which are gathered over ranks like the model's."""
        if self.reference is None:
            return joined.targets
        # The model's own reader: the towers that both share are frozen, so what it keeps of them serves both.
        encode = self._encoder(self.reference.model, reader)
        queries, documents = (side.restore_order(self.reference.embed(side.with_encoder(encode))) for side in sides)
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
        """The embeddings of a chunk, [rows, dim] or [rows, tokens, dim]; the outputs of frozen towers are kept."""
        inputs = self._processor.finish(move(reader(chunk), self._device))
        # Without a graph it is the gradient cache's first forward, or the reference's: the chunk will be read again.
        is_read_again = not torch.is_grad_enabled()
        with self._autocast():
            has_room = not keeps_states(model) or (is_read_again and reader.has_room)
            with_features = with_fixed_features(model, inputs) if has_room else inputs
            if is_read_again:
                reader.keep_features(chunk, inputs, with_features)
            embeddings: Embeddings = model(with_features)
        return embeddings

    def _step_parts(self, batch: Batch) -> StepParts:
        encode = self._encoder(self._model, ChunkReader(self._processor))
        sides = (batch.queries, batch.documents)
        return StepParts(self._model, self._processor, encode, sides, self._device, self._objective.classes)
