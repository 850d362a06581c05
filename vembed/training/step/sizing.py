"""What `auto` stands for in the gradient cache: how many rows a chunk holds, and how many chunks keep their graphs.

Both follow from the memory that is free, once, at the first batch. On a CPU from the sizes of graphs; on an accelerator
a chunk is tried, forward and backward, and made smaller until it fits.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vembed.errors import ConfigError
from vembed.grad_cache.batch_norm import is_batch_norm
from vembed.grad_cache.settings import GradCacheSettings
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.freezing import keeps_states
from vembed.training.step.chunking import Chunking, describe_chunks
from vembed.training.step.memory import row_sizes
from vembed.training.step.memory_fit import (
    StepParts,
    count_kept_graphs,
    rows_by_estimate,
    rows_by_trial,
    tokens_by_estimate,
    tokens_by_trial,
)
from vembed.utils.memory import GIB, free_memory_bytes

_CPU_TOKENS = 4096  # of a chunk: more give a CPU nothing to do that it could do faster
_CPU_SHARE, _ACCELERATOR_SHARE = 0.5, 0.9  # of what is free: other programs need a CPU's memory too
_MAY_BE_AUTO = ("gradient_cache_chunk_size", "gradient_cache_chunk_tokens", "gradient_cache_retain")
_log = logging.getLogger(__name__)


class ChunkingFinder:
    """Finds the Chunking of a run at its first batch, and stays with it.

    It is what the settings ask for, with numbers in the place of `auto`.
    """

    def __init__(self, settings: GradCacheSettings, model: BaseEmbeddingModel) -> None:
        self._settings = settings
        self._model = model
        self._chunking: Chunking | None = None
        self._has_told = False

    @property
    def has_to_choose(self) -> bool:
        """Whether the first batches that `find` is asked about decide how large chunks are."""
        asked = self._settings.model_dump(include=set(_MAY_BE_AUTO))
        by_default = self._settings.gradient_cache_retain is None and self._model.checkpoints_gradients
        return self._chunking is None and self._settings.use_gradient_cache and (by_default or "auto" in asked.values())

    def find(self, batches: Sequence[StepParts]) -> Chunking:
        """The Chunking that suits the first batches that it is asked about, which a log line tells of."""
        if self._chunking is None:
            self._chunking = find_chunking(self._settings, batches)
        if self._chunking.is_on and not self._has_told:
            self._has_told = True
            self._tell(self._chunking, batches)
        return self._chunking

    def fix(self, chunking: Chunking) -> None:
        """Take this one, whatever the settings ask for."""
        self._chunking = chunking

    @property
    def found(self) -> Mapping[str, Any]:  # Any: settings of different types
        """The settings that may be `auto`, in numbers, for a run that goes on from here; none before a batch."""
        if self._chunking is None:
            return {}
        asked = self._settings.model_dump(include=set(_MAY_BE_AUTO))
        if not self._chunking.is_on:
            return asked
        numbers = (self._chunking.chunk_size, self._chunking.chunk_tokens, self._chunking.retain)
        chosen = zip(_MAY_BE_AUTO, numbers, strict=True)
        return asked | {key: number for key, number in chosen if number is not None}

    def keep(self, found: Mapping[str, Any]) -> None:  # Any: settings of different types
        """Go on with the numbers that another run found, whatever memory is free now."""
        asked = self._settings.model_dump()
        told = [f"{key} {value:g}" for key, value in found.items() if asked[key] == "auto"]
        if told:
            _log.info("auto stays what the run began with: %s", ", ".join(told))
        self._settings = self._settings.model_copy(update=dict(found))

    def _tell(self, chunking: Chunking, batches: Sequence[StepParts]) -> None:
        for words in dict.fromkeys(describe_chunks(parts.partitions(chunking), chunking) for parts in batches):
            _log.info(words)
        if any(is_batch_norm(module) for module in self._model.modules()):
            _log.info(
                "batch norms keep their statistics, since those of a chunk are not those of the batch;"
                " train_batch_norm: true needs use_gradient_cache: false"
            )


def find_chunking(settings: GradCacheSettings, batches: Sequence[StepParts]) -> Chunking:
    """What the settings ask for; `auto` is what memory has room for in a step of any of these batches.

    Leaves gradients and random numbers as they were.
    """
    if not settings.use_gradient_cache:
        return Chunking()
    size, tokens = settings.gradient_cache_chunk_size, settings.gradient_cache_chunk_tokens
    retain = settings.gradient_cache_retain
    if retain is None:
        retain = "auto" if batches[0].model.checkpoints_gradients else 0.0
    room = _room_bytes(settings, batches[0]) if "auto" in (size, tokens, retain) else 0
    if tokens is not None:
        chunking = Chunking(chunk_tokens=_choose_tokens(batches, room) if tokens == "auto" else tokens)
    else:
        chunking = Chunking(chunk_size=_choose_rows(batches, room) if size == "auto" else size)
    share = _choose_share(chunking, batches, room) if retain == "auto" else retain
    return replace(chunking, retain=share, most_state_bytes=most_state_bytes(settings))


def most_state_bytes(settings: GradCacheSettings) -> int:
    """Bytes of what frozen towers give for every token that may be kept."""
    return round(settings.gradient_cache_states_gib * GIB)


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
    by = rows_by_estimate if batches[0].device.type == "cpu" else rows_by_trial
    tests = [by(parts, room) for parts in batches]
    size = next((size for size in _sizes(most) if all(fits(size) for fits in tests)), None)
    _tell("gradient_cache_chunk_size", size, "rows", room)
    return size or 1


def _choose_tokens(batches: Sequence[StepParts], room: int) -> int:
    """The most tokens of a chunk, no fewer than the longest row has."""
    counts = [row_sizes(side, parts.processor) for parts in batches for side in parts.sides if side.num_rows]
    longest = max(int(count.max()) for count in counts)
    whole = max(len(count) * int(count.max()) for count in counts)
    on_cpu = batches[0].device.type == "cpu"
    by, most = (tokens_by_estimate, max(longest, _CPU_TOKENS)) if on_cpu else (tokens_by_trial, whole)
    tests = [by(parts, room) for parts in batches]
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


def _choose_share(chunking: Chunking, batches: Sequence[StepParts], room: int) -> float:
    """The largest share of chunks whose graphs fit beside what a step takes anyway, of whichever batch."""
    kept = [count_kept_graphs(parts, chunking, room) for parts in batches]
    number, total = min(kept, key=lambda counts: counts[0] / counts[1])
    if total > len(batches[0].sides):  # else it is the plain step
        _log.info("gradient_cache_retain: auto keeps the graphs of %d of %d chunks here", number, total)
    return number / total


def _room_bytes(settings: GradCacheSettings, parts: StepParts) -> int:
    """Bytes that a step may take, without those for what frozen towers give, at most half of them."""
    if settings.gradient_cache_memory_gib is not None:
        room = round(settings.gradient_cache_memory_gib * GIB)
    else:
        share = _CPU_SHARE if parts.device.type == "cpu" else _ACCELERATOR_SHARE
        room = round(share * free_memory_bytes(parts.device))
    kept = min(round(settings.gradient_cache_states_gib * GIB), room // 2) if keeps_states(parts.model) else 0
    return room - kept
