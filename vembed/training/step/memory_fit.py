"""Tests of whether a step in chunks of some size fits in memory.

By estimate, from the sizes of graphs as in `training/step/memory.py`; or by trial: a forward and backward of the
largest chunk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import list_tensors, take_rows
from vembed.losses.class_weights import ClassWeights
from vembed.model.base import BaseEmbeddingModel
from vembed.training.rng import preserve_rng
from vembed.training.step.chunking import Chunking, Side, SidePartition, chunk_side
from vembed.training.step.memory import (
    Encode,
    chunk_graphs,
    graph_size,
    largest_chunk,
    largest_first,
    peak_graph_bytes,
    trainable_bytes,
    working_memory_bytes,
)
from vembed.types import Processor
from vembed.utils.memory import MIB, peak_memory_mib, release_unused_memory, reset_peak_memory, used_memory_bytes


@dataclass(frozen=True)
class StepParts:
    """The parts of a step whose memory is asked for.

    encode: prepares a chunk of a side, moves it to the device, and embeds it there. sides: of one batch, which stands
    for all others. classes: the class weights of the loss.
    """

    model: BaseEmbeddingModel
    processor: Processor
    encode: Encode
    sides: Sequence[Side]
    device: torch.device
    classes: ClassWeights | None = None

    def partitions(self, chunking: Chunking) -> list[SidePartition]:
        """Each side in chunks."""
        return [chunk_side(side, self.processor, chunking) for side in self.sides]

    def graphs(self, chunking: Chunking) -> list[list[int]]:
        """Bytes of the graph of each chunk, by side."""
        return [chunk_graphs(self.model, self.encode, side, self.processor) for side in self.partitions(chunking)]


def rows_by_estimate(parts: StepParts, budget_bytes: int) -> Callable[[int], bool]:
    """fits(chunk_size): True if a step in chunks of so many rows takes at most the budget, by the sizes of graphs."""
    sides = [largest_first(side, parts.processor) for side in parts.sides]
    sizes = [graph_size(parts.model, parts.encode, side) for side in sides]

    def fits(chunk_size: int) -> bool:
        graphs = [
            [size.of(min(chunk_size, side.num_rows))] * max(1, math.ceil(side.num_rows / chunk_size))
            for size, side in zip(sizes, sides, strict=True)
        ]
        return _step_bytes(parts, graphs, 0.0) <= budget_bytes

    return fits


def rows_by_trial(parts: StepParts, budget_bytes: int) -> Callable[[int], bool]:
    """fits(chunk_size): True if a forward and backward of so many rows leave room for AdamW's moments."""
    sides = [largest_first(side, parts.processor) for side in parts.sides]

    def fits(chunk_size: int) -> bool:
        chunks = [take_rows(side, 0, min(chunk_size, side.num_rows)) for side in sides]
        return _trial_fits(parts, chunks, budget_bytes, at_once=all(side.num_rows <= chunk_size for side in sides))

    return fits


def tokens_by_estimate(parts: StepParts, budget_bytes: int) -> Callable[[int], bool]:
    """fits(tokens): True if a step in chunks of so many tokens takes at most the budget, by the sizes of graphs."""

    def fits(tokens: int) -> bool:
        return _step_bytes(parts, parts.graphs(Chunking(chunk_tokens=tokens)), 0.0) <= budget_bytes

    return fits


def tokens_by_trial(parts: StepParts, budget_bytes: int) -> Callable[[int], bool]:
    """fits(tokens): True if the largest chunk of so many tokens runs, and leaves room for AdamW's moments."""

    def fits(tokens: int) -> bool:
        partitions = parts.partitions(Chunking(chunk_tokens=tokens))
        chunks = [largest_chunk(partition, parts.processor) for partition in partitions]
        return _trial_fits(
            parts, chunks, budget_bytes, at_once=all(len(partition.rows) == 1 for partition in partitions)
        )

    return fits


def count_retained(parts: StepParts, chunking: Chunking, budget_bytes: int) -> tuple[int, int]:
    """The number of a batch's chunks that may keep their graphs within the budget, and the number of all."""
    graphs = parts.graphs(chunking)
    total = number = sum(map(len, graphs))
    while number > 1 and _step_bytes(parts, graphs, number / total) > budget_bytes:
        number -= 1
    return number, total


def _trial_fits(parts: StepParts, chunks: Sequence[Side], budget_bytes: int, *, at_once: bool) -> bool:
    """True if a forward and backward of these chunks, together or one by one, leave room for AdamW's moments."""
    before = used_memory_bytes(parts.device)
    reset_peak_memory(parts.device)
    try:
        for group in [chunks] if at_once else [[chunk] for chunk in chunks]:
            _try_backward(parts, group)
    except torch.OutOfMemoryError:
        return False
    finally:
        release_unused_memory(parts.device)
    taken = peak_memory_mib(parts.device) * MIB - before
    # A trial has no loss, and so no gradient of the classes' weights.
    of_loss = trainable_bytes(parts.model, parts.classes) - trainable_bytes(parts.model)
    return taken + 2 * trainable_bytes(parts.model) + 3 * of_loss <= budget_bytes


def _try_backward(parts: StepParts, chunks: Sequence[Side]) -> None:
    """Forward and backward of these chunks at once; gradients and random generators are as before afterwards."""
    parameters = list(parts.model.parameters())
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with preserve_rng():
            embedded = [output for chunk in chunks for output in list_tensors(parts.encode(chunk))]
            outputs = [output for output in embedded if output.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def _step_bytes(parts: StepParts, graphs: Sequence[Sequence[int]], retain: float) -> int:
    """Bytes of a step: gradients, both moments of AdamW, a chunk's gradients before they are added, and activations."""
    activations = peak_graph_bytes(graphs, retain)
    working_memory = working_memory_bytes(parts.model, parts.device, activations)
    return 4 * trainable_bytes(parts.model, parts.classes) + activations + working_memory
