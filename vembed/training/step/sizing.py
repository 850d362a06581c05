"""What `auto` stands for in the gradient cache: how many rows a chunk holds, and how many chunks keep their graphs.

Both follow from the memory that is free, once, at the first batch. On a CPU from the sizes of graphs, as in
`training/step/memory.py`; on an accelerator a chunk is tried, forward and backward, and made smaller until it fits.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.errors import ConfigError
from vembed.grad_cache.cachex.tree_utils import list_tensors, take_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.class_weights import ClassWeights
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.freezing import keeps_states
from vembed.training.rng import rng_unmoved
from vembed.training.step.chunking import Side, SidePartition, chunk_side
from vembed.training.step.memory import (
    Encode,
    chunk_graphs,
    graph_size,
    held_bytes,
    largest_chunk,
    largest_first,
    learning_bytes,
    row_sizes,
    working_bytes,
)
from vembed.types import Processor
from vembed.utils.memory import (
    GIB,
    MIB,
    free_memory_bytes,
    peak_memory_mib,
    release_unused_memory,
    reset_peak_memory,
    used_memory_bytes,
)

_CPU_TOKENS = 4096  # of a chunk: more give a CPU nothing to do that it could do faster
_CPU_SHARE, _ACCELERATOR_SHARE = 0.5, 0.9  # of what is free: other programs need a CPU's memory too
_log = logging.getLogger(__name__)


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


def settle(settings: GradCacheSettings, batches: Sequence[StepParts]) -> GradCacheSettings:
    """The settings with numbers in the place of `auto`, as memory has room for a step of any of these batches.

    Leaves gradients and random numbers as they were.
    """
    if not settings.use_gradient_cache:
        return settings
    retain = settings.gradient_cache_retain
    if retain is None:
        retain = "auto" if batches[0].model.checkpoints_gradients else 0.0
    by_tokens = settings.gradient_cache_chunk_tokens is not None
    key = "gradient_cache_chunk_tokens" if by_tokens else "gradient_cache_chunk_size"
    size = settings.gradient_cache_chunk_tokens if by_tokens else settings.gradient_cache_chunk_size
    if "auto" in (size, retain):
        room = _room_bytes(settings, batches[0])
        if size == "auto":
            chosen = _choose_tokens(settings, batches, room) if by_tokens else _choose_rows(batches, room)
            settings = settings.model_copy(update={key: chosen})
        if retain == "auto":
            retain = _choose_share(settings, batches, room)
    return settings.model_copy(update={"gradient_cache_retain": retain})


def check_limit_of_states(settings: GradCacheSettings, model: BaseEmbeddingModel) -> None:
    """Raise ConfigError for a limit of what frozen towers give for every token, where a model has nothing like that."""
    limit = settings.gradient_cache_states_gib
    if not keeps_states(model) and limit != GradCacheSettings.model_fields["gradient_cache_states_gib"].default:
        raise ConfigError(
            f"gradient_cache_states_gib: {limit} has no effect: in this {model.spec.family} model no frozen tower gives"
            " a vector per token, as a vision-language model's vision tower or a ColBERT's encoder does; take it out"
        )


def _choose_rows(batches: Sequence[StepParts], room: int) -> int:
    """The most rows of a chunk, all chunks of the larger side about equal. room: bytes that a step may take."""
    most = max(1, *(side.num_rows for parts in batches for side in parts.sides))
    by = _by_estimate if batches[0].device.type == "cpu" else _by_trial
    tests = [by(parts, room) for parts in batches]
    size = next((size for size in _sizes(most) if all(fits(size) for fits in tests)), None)
    _tell("gradient_cache_chunk_size", size, "rows", room)
    return size or 1


def _choose_tokens(settings: GradCacheSettings, batches: Sequence[StepParts], room: int) -> int:
    """The most tokens of a chunk, no fewer than the longest row has."""
    counts = [row_sizes(side, parts.processor) for parts in batches for side in parts.sides if side.num_rows]
    longest = max(int(count.max()) for count in counts)
    whole = max(len(count) * int(count.max()) for count in counts)
    on_cpu = batches[0].device.type == "cpu"
    by, most = (_tokens_by_estimate, max(longest, _CPU_TOKENS)) if on_cpu else (_tokens_by_trial, whole)
    tests = [by(settings, parts, room) for parts in batches]
    budgets = (budget for budget in _sizes(most) if budget >= longest)
    tokens = next((budget for budget in budgets if all(fits(budget) for fits in tests)), None)
    _tell("gradient_cache_chunk_tokens", tokens, "tokens", room)
    return tokens or longest


def _tell(key: str, chosen: int | None, unit: str, room: int) -> None:
    """Log what `auto` is, or that not even a chunk of one row fits."""
    if chosen is None:
        _log.warning("%s: auto has room for %.3g GiB, less than a chunk of one row takes", key, room / GIB)
    else:
        _log.info("%s: auto is %d %s here, with room for %.3g GiB", key, chosen, unit, room / GIB)


def _sizes(most: int) -> Iterator[int]:
    """How large chunks may be, from all at once down to one.

    >>> list(_sizes(12))
    [12, 6, 4, 3, 2, 1]
    """
    num_chunks, last = 1, most + 1
    while last > 1:
        size = math.ceil(most / num_chunks)
        if size < last:
            yield size
        num_chunks, last = num_chunks + max(1, num_chunks // 4), size


def _choose_share(settings: GradCacheSettings, batches: Sequence[StepParts], room: int) -> float:
    """The largest share of chunks whose graphs fit beside what a step takes anyway, of whichever batch."""
    number, total = min((_kept_chunks(settings, parts, room) for parts in batches), key=lambda kept: kept[0] / kept[1])
    if total > len(batches[0].sides):  # else it is the plain step
        _log.info("gradient_cache_retain: auto keeps the graphs of %d of %d chunks here", number, total)
    return number / total


def _kept_chunks(settings: GradCacheSettings, parts: StepParts, room: int) -> tuple[int, int]:
    """How many chunks of a batch may keep their graphs, and how many there are."""
    partitions = [chunk_side(side, parts.processor, settings) for side in parts.sides]
    graphs = [chunk_graphs(parts.model, parts.encode, partition, parts.processor) for partition in partitions]
    total = number = sum(map(len, graphs))
    while number > 1 and _step_bytes(parts, graphs, number / total) > room:
        number -= 1
    return number, total


def _step_bytes(parts: StepParts, graphs: Sequence[Sequence[int]], retain: float) -> int:
    """What a step takes: gradients, both moments of AdamW, those of a chunk before they are added, and activations."""
    held = held_bytes(graphs, retain)
    return 4 * learning_bytes(parts.model, parts.classes) + held + working_bytes(parts.model, parts.device, held)


def _by_estimate(parts: StepParts, room: int) -> Callable[[int], bool]:
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


def _by_trial(parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether a forward and backward of so many rows leave room for AdamW's moments."""
    sides = [largest_first(side, parts.processor) for side in parts.sides]

    def fits(chunk_size: int) -> bool:
        chunks = [take_rows(side, 0, min(chunk_size, side.num_rows)) for side in sides]
        return _runs(parts, chunks, room, at_once=all(side.num_rows <= chunk_size for side in sides))

    return fits


def _tokens_by_estimate(settings: GradCacheSettings, parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether chunks of so many tokens fit, by the sizes of graphs."""

    def fits(tokens: int) -> bool:
        partitions = _chunks_of_tokens(settings, parts, tokens)
        graphs = [chunk_graphs(parts.model, parts.encode, partition, parts.processor) for partition in partitions]
        return _step_bytes(parts, graphs, 0.0) <= room

    return fits


def _tokens_by_trial(settings: GradCacheSettings, parts: StepParts, room: int) -> Callable[[int], bool]:
    """Whether a forward and backward of the largest chunk of so many tokens leave room for AdamW's moments."""

    def fits(tokens: int) -> bool:
        partitions = _chunks_of_tokens(settings, parts, tokens)
        chunks = [largest_chunk(partition, parts.processor) for partition in partitions]
        return _runs(parts, chunks, room, at_once=all(len(partition.rows) == 1 for partition in partitions))

    return fits


def _chunks_of_tokens(settings: GradCacheSettings, parts: StepParts, tokens: int) -> list[SidePartition]:
    chosen = settings.model_copy(update={"gradient_cache_chunk_tokens": tokens})
    return [chunk_side(side, parts.processor, chosen) for side in parts.sides]


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


def _room_bytes(settings: GradCacheSettings, parts: StepParts) -> int:
    """Bytes that a step may take, without those for what frozen towers give, at most half of them."""
    if settings.gradient_cache_memory_gib is not None:
        room = round(settings.gradient_cache_memory_gib * GIB)
    else:
        share = _CPU_SHARE if parts.device.type == "cpu" else _ACCELERATOR_SHARE
        room = round(share * free_memory_bytes(parts.device))
    kept = min(round(settings.gradient_cache_states_gib * GIB), room // 2) if keeps_states(parts.model) else 0
    return room - kept
