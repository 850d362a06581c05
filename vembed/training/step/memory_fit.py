"""Whether a step in such chunks fits in memory.

By estimate, from the sizes of graphs as in `training/step/memory.py`; or by trial, a forward and backward of the
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
from vembed.training.rng import rng_unmoved
from vembed.training.step.chunking import Chunking, Side, SidePartition, chunk_side
from vembed.training.step.memory import (
    Encode,
    chunk_graphs,
    graph_size,
    held_bytes,
    largest_chunk,
    largest_first,
    learning_bytes,
    working_bytes,
)
from vembed.types import Processor
from vembed.utils.memory import MIB, peak_memory_mib, release_unused_memory, reset_peak_memory, used_memory_bytes


@dataclass(frozen=True)
class StepParts:
    """What a step consists of. encode: prepares a chunk of a side, moves it to the device, and embeds it there.

    sides: of a batch like all others. classes: weights that the loss learns.
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
        """Of each side, the bytes of the graphs of its chunks."""
        return [chunk_graphs(self.model, self.encode, side, self.processor) for side in self.partitions(chunking)]


def rows_by_estimate(parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether chunks of so many rows fit, by the sizes of graphs."""
    sides = [largest_first(side, parts.processor) for side in parts.sides]
    sizes = [graph_size(parts.model, parts.encode, side) for side in sides]

    def fits(chunk_size: int) -> bool:
        graphs = [
            [size.of(min(chunk_size, side.num_rows))] * max(1, math.ceil(side.num_rows / chunk_size))
            for size, side in zip(sizes, sides, strict=True)
        ]
        return _step_bytes(parts, graphs, 0.0) <= room

    return fits


def rows_by_trial(parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether a forward and backward of so many rows leave room for AdamW's moments."""
    sides = [largest_first(side, parts.processor) for side in parts.sides]

    def fits(chunk_size: int) -> bool:
        chunks = [take_rows(side, 0, min(chunk_size, side.num_rows)) for side in sides]
        return _runs(parts, chunks, room, at_once=all(side.num_rows <= chunk_size for side in sides))

    return fits


def tokens_by_estimate(parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether chunks of so many tokens fit, by the sizes of graphs."""

    def fits(tokens: int) -> bool:
        return _step_bytes(parts, parts.graphs(Chunking(chunk_tokens=tokens)), 0.0) <= room

    return fits


def tokens_by_trial(parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether a forward and backward of the largest chunk of so many tokens leave room for AdamW's moments."""

    def fits(tokens: int) -> bool:
        partitions = parts.partitions(Chunking(chunk_tokens=tokens))
        chunks = [largest_chunk(partition, parts.processor) for partition in partitions]
        return _runs(parts, chunks, room, at_once=all(len(partition.rows) == 1 for partition in partitions))

    return fits


def count_kept_graphs(parts: StepParts, chunking: Chunking, room: int) -> tuple[int, int]:
    """How many chunks of a batch may keep their graphs, and how many there are."""
    graphs = parts.graphs(chunking)
    total = number = sum(map(len, graphs))
    while number > 1 and _step_bytes(parts, graphs, number / total) > room:
        number -= 1
    return number, total


def _runs(parts: StepParts, chunks: Sequence[Side], room: int, *, at_once: bool) -> bool:
    """Whether a forward and backward of these chunks, together or one by one, leave room for AdamW's moments."""
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
    of_loss = learning_bytes(parts.model, parts.classes) - learning_bytes(parts.model)
    return taken + 2 * learning_bytes(parts.model) + 3 * of_loss <= room


def _try_backward(parts: StepParts, chunks: Sequence[Side]) -> None:
    """Forward and backward of chunks at once."""
    parameters = list(parts.model.parameters())
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with rng_unmoved():
            embedded = [output for chunk in chunks for output in list_tensors(parts.encode(chunk))]
            outputs = [output for output in embedded if output.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def _step_bytes(parts: StepParts, graphs: Sequence[Sequence[int]], retain: float) -> int:
    """What a step takes: gradients, both moments of AdamW, those of a chunk before they are added, and activations."""
    held = held_bytes(graphs, retain)
    return 4 * learning_bytes(parts.model, parts.classes) + held + working_bytes(parts.model, parts.device, held)
