"""An estimate of a run's peak memory before it trains, from its sizes and a forward of one and of two rows.

Peak = memory of the process before + weights + the reference's own weights + gradients + AdamW's moments + activations
of the chunks whose graphs are alive at once + kept hidden states of frozen towers + working memory + the batch's inputs
+ its embeddings and scores. Every row of a chunk is padded to the same length, so activations are linear in rows, and
two measurements give those of any chunk: of the one that holds the longest row, which is padded most. Working memory (a
chunk's gradients before they are added up, what operations need for a moment, and what the allocator keeps) is a rule
of thumb that benchmark/memory_estimate.py checks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.functional import num_retained
from vembed.grad_cache.cachex.tree_utils import list_tensors, move, select_rows, take_rows
from vembed.losses.class_weights import ClassWeights
from vembed.losses.strips import most_scores
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.freezing import keeps_states, with_fixed_features
from vembed.training.dpo import Reference
from vembed.training.precision import Precision
from vembed.training.rng import preserve_rng
from vembed.training.step.chunk_reader import FROZEN_OUTPUTS
from vembed.training.step.chunking import Chunking, Side, SidePartition, chunk_batch
from vembed.types import Batch, ImageSource, Inputs, ItemRows, Processor
from vembed.utils.memory import MIB, used_memory_bytes

# The scores, their softmax in both directions, and the gradient of each.
_NUM_SCORE_MATRICES = 6
Encode = Callable[[Side], object]
WORKING_SHARE = 0.35  # of the activations
# Of the inputs of checkpointed layers: what the heap of a CPU holds between them, in holes.
_CHECKPOINTED_SHARE = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each part of the peak, in the order in which they are shown."""

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
    chunking: Chunking,
    precision: Precision,
    reference: Reference | None = None,
    classes: ClassWeights | None = None,
) -> MemoryEstimate:
    """The peak of training on batches like `batch`. To be called with the model on its device, before training.

    reference: the reference model of a preference loss; classes: the class weights of the loss; both on that device.
    """
    device = precision.device
    class_weights = [] if classes is None else [classes.weight]
    weights = _num_bytes([*model.parameters(), *model.buffers(), *class_weights])
    reference_bytes = 0 if reference is None else reference.num_bytes(model)
    used = used_memory_bytes(device)
    gradients = trainable_bytes(model, classes)
    sides = (batch.queries, batch.documents)

    def finished(rows: Side) -> Inputs:
        inputs = rows if isinstance(rows, Inputs) else processor.prepare(rows.items, rows.side)
        return processor.finish(move(inputs, device))

    def encode(rows: Side) -> object:
        with precision.autocast():
            return model(finished(rows))

    partitions = chunk_batch(batch, processor, chunking)
    graphs = [chunk_graphs(model, encode, partition, processor) for partition in partitions]
    activations = peak_graph_bytes(graphs, chunking.retain)
    return MemoryEstimate(
        {
            "process": max(0, used - weights - reference_bytes) if device.type == "cpu" else 0,
            "weights": weights,
            "reference": reference_bytes,
            "gradients": gradients,
            "AdamW": 2 * gradients,
            "activations": activations,
            "frozen towers' output": _hidden_state_bytes(model, finished, partitions, processor, chunking, reference),
            "working memory": gradients + working_memory_bytes(model, device, activations),
            "inputs": sum(map(_input_bytes, sides)) if device.type == "cpu" else 0,
            "embeddings and scores": _scores_bytes(model, batch) + _class_scores_bytes(batch, class_weights),
        }
    )


def _hidden_state_bytes(
    model: BaseEmbeddingModel,
    finished: Callable[[Side], Inputs],
    partitions: Sequence[SidePartition],
    processor: Processor,
    chunking: Chunking,
    reference: Reference | None,
) -> int:
    """Bytes of the frozen towers' hidden states that are kept, as if all rows of a side were as large as its largest.

    Chunks that keep their graphs need no second forward, so theirs are not kept, unless a reference encodes them first.
    """
    num_chunks = sum(len(partition.rows) for partition in partitions)
    if not keeps_states(model) or num_chunks == len(partitions):
        return 0
    num_kept_graphs = num_retained(num_chunks, chunking.retain) if reference is None else 0
    total = 0
    for partition in partitions:
        row = take_rows(largest_first(partition.side, processor), 0, 1)
        tensors = with_fixed_features(model, finished(row)).tensors
        total += partition.side.num_rows * sum(
            tensors[name].values.nbytes for name in FROZEN_OUTPUTS if name in tensors
        )
    return min(total * (num_chunks - num_kept_graphs) // num_chunks, chunking.max_hidden_state_bytes)


@dataclass(frozen=True)
class GraphSize:
    """Bytes that the graph of a chunk holds: of its first row, and of each further one."""

    first: int
    further: int

    def of(self, num_rows: int) -> int:
        """Bytes of the graph of a chunk of so many rows."""
        return self.first + (num_rows - 1) * self.further if num_rows else 0


def graph_size(model: BaseEmbeddingModel, encode: Encode, rows: Side) -> GraphSize:
    """The size of the graph of a chunk whose rows are like the first two."""

    def saved_bytes(num_rows: int) -> int:
        with _record_saved_bytes(model) as saved:
            encode(take_rows(rows, 0, num_rows))
        return sum(saved.values())

    with preserve_rng(), _training_mode(model), torch.compiler.set_stance("force_eager"):
        one = saved_bytes(1)
        return GraphSize(one, saved_bytes(2) - one if rows.num_rows > 1 else one)


def chunk_graphs(
    model: BaseEmbeddingModel, encode: Encode, partition: SidePartition, processor: Processor
) -> list[int]:
    """Bytes of the graph of each chunk, in order.

    Chunks of a number of rows take them as they come, so that the largest of a batch may meet; chunks of a number of
    tokens are those of this batch, and none is taken to be smaller than the largest.
    """
    if not partition.max_row_tokens:
        size = graph_size(model, encode, largest_first(partition.side, processor))
        return [size.of(len(rows)) for rows in partition.rows]
    chunk = largest_chunk(partition, processor)
    size = graph_size(model, encode, chunk)
    return [size.of(chunk.num_rows)] * len(partition.rows)


def largest_chunk(partition: SidePartition, processor: Processor) -> Side:
    """The rows of the chunk with most tokens, padding counted; largest first."""
    sizes = row_sizes(partition.side, processor)
    rows = max(partition.rows, key=lambda rows: len(rows) * int(sizes[list(rows)].max()) if len(rows) else 0)
    return largest_first(select_rows(partition.side, torch.tensor(rows, dtype=torch.int64)), processor)


def peak_graph_bytes(graphs: Sequence[Sequence[int]], retain: float) -> int:
    """The most bytes that graphs hold at once; graphs: of each side, those of its chunks."""
    all_graphs = [graph for side in graphs for graph in side]
    if all(len(side) == 1 for side in graphs):
        return sum(all_graphs)
    return max(*all_graphs, sum(all_graphs[-num_retained(len(all_graphs), retain) :]))


def working_memory_bytes(model: BaseEmbeddingModel, device: torch.device, graph_bytes: int) -> int:
    """Bytes that a forward and backward take for a moment, beside graphs of `graph_bytes`: a rule of thumb."""
    if model.checkpoints_gradients and device.type == "cpu":
        return _CHECKPOINTED_SHARE * graph_bytes
    return round(WORKING_SHARE * graph_bytes)


def trainable_bytes(model: BaseEmbeddingModel, classes: ClassWeights | None = None) -> int:
    """Bytes of the trainable parameters, and so of their gradients. classes: the class weights of the loss."""
    parameters = [*model.parameters(), *(() if classes is None else classes.parameters())]
    return _num_bytes([parameter for parameter in parameters if parameter.requires_grad])


def largest_first(side: Side, processor: Processor) -> Side:
    """The side's rows, largest first."""
    return select_rows(side, row_sizes(side, processor).argsort(descending=True, stable=True))


def row_sizes(side: Side, processor: Processor) -> Tensor:
    """The size of each row, int64 [rows]: its tokens, or its slices where it is prepared already."""
    if isinstance(side, ItemRows):
        return torch.tensor(processor.count_tokens(side.items, side.side), dtype=torch.int64)
    return sum((ragged.counts for ragged in side.tensors.values()), torch.zeros(side.num_rows, dtype=torch.int64))


def _input_bytes(side: Side) -> int:
    """Bytes of a side on the host: pixels or files, and tensors that are prepared already."""
    if isinstance(side, Inputs):
        return _num_bytes(list_tensors(side))
    return sum(_image_bytes(image) for item in side.items for image in item.images)


def _image_bytes(image: Mapping[str, Tensor] | ImageSource) -> int:
    if not isinstance(image, ImageSource):
        return _num_bytes(list(image.values()))
    return len(image.data or b"")


@contextmanager
def _record_saved_bytes(model: BaseEmbeddingModel) -> Iterator[dict[int, int]]:
    """Storage -> its bytes, of all that autograd saves for backward in the block, parameters left out."""
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
    """Bytes of the float32 embeddings with their gradients, and of the scores that exist at once."""
    queries, documents = batch.queries.num_rows, batch.documents.num_rows
    scores = most_scores(queries, documents, model.logit_scale.device.type)
    return 4 * (2 * (queries + documents) * model.dim + _NUM_SCORE_MATRICES * scores)


def _class_scores_bytes(batch: Batch, class_weights: Sequence[Tensor]) -> int:
    """Bytes of the class weights at length 1 with their gradient, and of a strip of their scores."""
    rows = batch.queries.num_rows + batch.documents.num_rows
    strips = [4 * _NUM_SCORE_MATRICES * most_scores(rows, len(weight), weight.device.type) for weight in class_weights]
    return 2 * _num_bytes(class_weights) + sum(strips)


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
