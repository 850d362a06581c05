"""What `auto` stands for in the gradient cache: how many rows a chunk holds, and how many chunks keep their graphs.

Both follow from the memory that is free, once, at the first batch. On a CPU from the sizes of graphs, as in
`training/memory.py`; on an accelerator a chunk is tried, forward and backward, and made smaller until it fits.
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
from vembed.losses.classes import ClassWeights
from vembed.model.base import BaseEmbeddingModel
from vembed.training.chunks import Side, cut_side
from vembed.training.memory import (
    Encode,
    chunk_graphs,
    graph_size,
    held_bytes,
    largest_first,
    learning_bytes,
    working_bytes,
)
from vembed.training.rng import rng_unmoved
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


def settle(settings: GradCacheSettings, parts: StepParts) -> GradCacheSettings:
    """The settings with numbers in the place of `auto`, as memory has room.

    Leaves gradients and random numbers as they were.
    """
    if not settings.use_gradient_cache:
        return settings
    retain = settings.gradient_cache_retain
    if retain is None:
        retain = "auto" if parts.model.checkpoints_gradients else 0.0
    auto_size = settings.gradient_cache_chunk_size == "auto"
    if auto_size or retain == "auto":
        room = _room_bytes(settings, parts)
        if auto_size:
            settings = settings.model_copy(update={"gradient_cache_chunk_size": _choose_size(settings, parts, room)})
        if retain == "auto":
            retain = _choose_share(settings, parts, room)
    return settings.model_copy(update={"gradient_cache_retain": retain})


def check_limit_of_states(settings: GradCacheSettings, model: BaseEmbeddingModel) -> None:
    """Raise ConfigError for a limit of what frozen layers give, set for a model of which nothing like that is kept."""
    limit = settings.gradient_cache_states_gib
    if not model.keeps_states and limit != GradCacheSettings.model_fields["gradient_cache_states_gib"].default:
        raise ConfigError(
            f"gradient_cache_states_gib: {limit} has no effect: of this {model.spec.family} model neither first layers"
            " are frozen (freeze_layers) nor the vision tower of a vision-language model (freeze); take it out"
        )


def _choose_size(settings: GradCacheSettings, parts: StepParts, room: int) -> int:
    """The most rows of a chunk, all chunks of the larger side about equal. room: bytes that a step may take."""
    most = max(1, *(side.num_rows for side in parts.sides))
    sides = [largest_first(side, parts.processor) for side in parts.sides]
    fits = _by_estimate(parts, sides, room) if parts.device.type == "cpu" else _by_trial(parts, sides, room)
    for size in _sizes(most):
        if fits(size):
            break
    else:
        _log.warning(
            "gradient_cache_chunk_size: auto has room for %.3g GiB, less than a chunk of 1 row takes", room / GIB
        )
    rows = "1 row" if size == 1 else f"{size} rows"
    _log.info("gradient_cache_chunk_size: auto is %s here, with room for %.3g GiB", rows, room / GIB)
    return size


def _sizes(num_rows: int) -> Iterator[int]:
    """Rows of a chunk, from all at once down to one.

    >>> list(_sizes(12))
    [12, 6, 4, 3, 2, 1]
    """
    num_chunks, last = 1, num_rows + 1
    while last > 1:
        size = math.ceil(num_rows / num_chunks)
        if size < last:
            yield size
        num_chunks, last = num_chunks + max(1, num_chunks // 4), size


def _choose_share(settings: GradCacheSettings, parts: StepParts, room: int) -> float:
    """The largest share of chunks whose graphs fit beside what a step takes anyway."""
    cuts = [cut_side(side, parts.processor, settings) for side in parts.sides]
    graphs = [chunk_graphs(parts.model, parts.encode, cut, parts.processor) for cut in cuts]
    total = number = sum(map(len, graphs))
    while number > 1 and _step_bytes(parts, graphs, number / total) > room:
        number -= 1
    if total > len(cuts):  # else it is the plain step
        _log.info("gradient_cache_retain: auto keeps the graphs of %d of %d chunks here", number, total)
    return number / total


def _step_bytes(parts: StepParts, graphs: Sequence[Sequence[int]], retain: float) -> int:
    """What a step takes: gradients, both moments of AdamW, those of a chunk before they are added, and activations."""
    held = held_bytes(graphs, retain)
    return 4 * learning_bytes(parts.model, parts.classes) + held + working_bytes(parts.model, parts.device, held)


def _by_estimate(parts: StepParts, sides: Sequence[Side], room: int) -> Callable[[int], bool]:
    """Whether chunks of so many rows fit, by the sizes of graphs. sides: largest rows first."""
    sizes = [graph_size(parts.model, parts.encode, side) for side in sides]

    def fits(chunk_size: int) -> bool:
        graphs = [
            [size.of(min(chunk_size, side.num_rows))] * max(1, math.ceil(side.num_rows / chunk_size))
            for size, side in zip(sizes, sides, strict=True)
        ]
        return _step_bytes(parts, graphs, 0.0) <= room

    return fits


def _by_trial(parts: StepParts, sides: Sequence[Side], room: int) -> Callable[[int], bool]:
    """Whether a forward and backward of so many rows leave room for AdamW's moments. sides: largest rows first."""

    def fits(chunk_size: int) -> bool:
        before = used_memory_bytes(parts.device)
        reset_peak_memory(parts.device)
        chunks = [take_rows(side, 0, min(chunk_size, side.num_rows)) for side in sides]
        at_once = all(side.num_rows <= chunk_size for side in sides)
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

    return fits


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
    """Bytes that a step may take, without those for what frozen layers give, which is at most half of them."""
    if settings.gradient_cache_memory_gib is not None:
        room = round(settings.gradient_cache_memory_gib * GIB)
    else:
        share = _CPU_SHARE if parts.device.type == "cpu" else _ACCELERATOR_SHARE
        room = round(share * free_memory_bytes(parts.device))
    kept = min(round(settings.gradient_cache_states_gib * GIB), room // 2) if parts.model.keeps_states else 0
    return room - kept
