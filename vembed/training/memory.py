"""An estimate of a run's peak memory before it trains, from its sizes and a forward of one and of two rows.

Peak = what the process holds already + weights + what a reference holds of its own + gradients + AdamW's moments +
activations of the chunks whose graphs are alive at once + working memory + the batch's inputs + its embeddings and
scores. Every row of a chunk is padded to the same length, so activations are linear in rows, and two measurements give
those of any chunk: of the one that holds the longest row, which is padded most. Working memory (a chunk's gradients
before they are added up, what operations need for a moment, and what the allocator keeps) is a rule of thumb that
benchmark/memory_estimate.py checks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import list_tensors, move, select_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.classes import ClassWeights
from vembed.losses.strips import DENSE_SCORES
from vembed.model.base import BaseEmbeddingModel
from vembed.training.chunks import Side, cut_side
from vembed.training.dpo import Reference
from vembed.training.precision import Precision
from vembed.training.rng import rng_unmoved
from vembed.types import Batch, ImageSource, Inputs, ItemRows, Processor
from vembed.utils.memory import MIB, used_memory_bytes

# The scores, their softmax in both directions, and the gradient of each.
_NUM_SCORE_MATRICES = 6
_WORKING_SHARE = 0.35  # of the activations


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what takes them, in the order in which they are shown."""

    parts: Mapping[str, int]

    @property
    def total_mib(self) -> float:
        """The peak."""
        return sum(self.parts.values()) / MIB


def estimate_memory(
    model: BaseEmbeddingModel,
    processor: Processor,
    batch: Batch,
    *,
    settings: GradCacheSettings,
    precision: Precision,
    reference: Reference | None = None,
    classes: ClassWeights | None = None,
) -> MemoryEstimate:
    """The peak of training on batches like `batch`. To be called with the model on its device, before training.

    reference: what the objective compares with; classes: the weights that it learns; both on the same device.
    """
    device = precision.device
    of_classes = [] if classes is None else [classes.weight]
    weights = _num_bytes([*model.parameters(), *model.buffers(), *of_classes])
    held = 0 if reference is None else reference.num_bytes(model)
    used = used_memory_bytes(device)
    learning = [parameter for parameter in (*model.parameters(), *of_classes) if parameter.requires_grad]
    sides = (batch.queries, batch.documents)
    with rng_unmoved(), _training_mode(model), torch.compiler.set_stance("force_eager"):
        activations = [_activations(model, processor, side, settings, precision) for side in sides]
    one_chunk = all(len(cut_side(side, processor, settings).rows) == 1 for side in sides)
    kept = sum(activations) if one_chunk else max(activations)
    return MemoryEstimate(
        {
            "process": max(0, used - weights - held) if device.type == "cpu" else 0,
            "weights": weights,
            "reference": held,
            "gradients": _num_bytes(learning),
            "AdamW": 2 * _num_bytes(learning),
            "activations": kept,
            "working memory": _num_bytes(learning) + round(_WORKING_SHARE * kept),
            "inputs": sum(map(_input_bytes, sides)) if device.type == "cpu" else 0,
            "embeddings and scores": _scores_bytes(model, batch) + _class_scores_bytes(batch, of_classes),
        }
    )


def _activations(
    model: BaseEmbeddingModel, processor: Processor, side: Side, settings: GradCacheSettings, precision: Precision
) -> int:
    """Bytes that the backward pass of the largest chunk of a side keeps, from its largest row and its two largest."""
    largest, num_rows_of_chunk = _largest_chunk(side, processor, settings)

    def kept(num_rows: int) -> int:
        rows = select_rows(side, largest[:num_rows])
        inputs = rows if isinstance(rows, Inputs) else processor.prepare(rows.items, rows.side)
        finished = processor.finish(move(inputs, precision.device))
        with _count_saved(model) as saved, precision.autocast():
            model(finished)
        return sum(saved.values())

    one = kept(1)
    return one if num_rows_of_chunk == 1 else one + (num_rows_of_chunk - 1) * (kept(2) - one)


def _largest_chunk(side: Side, processor: Processor, settings: GradCacheSettings) -> tuple[Tensor, int]:
    """Row numbers [rows], those that are largest first, and how many rows share a chunk with the first.

    Chunks of a number of rows take them as they come, so that the largest of a batch may meet; chunks of a number of
    tokens are those of this batch.
    """
    sizes = _row_sizes(side, processor)
    chunks = cut_side(side, processor, settings).rows
    if settings.gradient_cache_chunk_tokens is None:
        return sizes.argsort(descending=True, stable=True), max(map(len, chunks))
    rows = torch.tensor(max(chunks, key=lambda rows: len(rows) * int(sizes[list(rows)].max())))
    return rows[sizes[rows].argsort(descending=True, stable=True)], len(rows)


def _row_sizes(side: Side, processor: Processor) -> Tensor:
    """How large each row is, int64 [rows]: its tokens, or its slices where it is prepared already."""
    if isinstance(side, ItemRows):
        return torch.tensor(processor.count_tokens(side.items, side.side), dtype=torch.int64)
    return sum((ragged.counts for ragged in side.tensors.values()), torch.zeros(side.num_rows, dtype=torch.int64))


def _input_bytes(side: Side) -> int:
    """What the host holds of a side: pixels or files, and tensors that are prepared already."""
    if isinstance(side, Inputs):
        return _num_bytes(list_tensors(side))
    return sum(_image_bytes(image) for item in side.items for image in item.images)


def _image_bytes(image: Mapping[str, Tensor] | ImageSource) -> int:
    if not isinstance(image, ImageSource):
        return _num_bytes(list(image.values()))
    return len(image.data or b"")


@contextmanager
def _count_saved(model: BaseEmbeddingModel) -> Iterator[dict[int, int]]:
    """Bytes of each distinct storage that autograd keeps in the block, parameters left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@contextmanager
def _training_mode(model: BaseEmbeddingModel) -> Iterator[None]:
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


def _scores_bytes(model: BaseEmbeddingModel, batch: Batch) -> int:
    """float32 embeddings with their gradients, and the score matrices."""
    queries, documents = batch.queries.num_rows, batch.documents.num_rows
    return 4 * (2 * (queries + documents) * model.dim + _NUM_SCORE_MATRICES * queries * documents)


def _class_scores_bytes(batch: Batch, of_classes: Sequence[Tensor]) -> int:
    """The class weights at length 1 with their gradient, and a strip of their scores."""
    rows = batch.queries.num_rows + batch.documents.num_rows
    strips = [
        4 * _NUM_SCORE_MATRICES * min(rows * len(weight), max(DENSE_SCORES, len(weight))) for weight in of_classes
    ]
    return 2 * _num_bytes(of_classes) + sum(strips)


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
