"""Chooses the values of the gradient cache's `auto`: rows or tokens of a chunk, and how many chunks keep their graphs.

They follow from the memory that is free at the first batch, and stay. On a CPU they are estimated from the sizes of
graphs; on an accelerator a chunk is run forward and backward, and made smaller until it fits.
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
    count_retained,
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
    """Finds the Chunking of a run at its first batch, the settings with numbers for `auto`, and keeps it."""

    def __init__(self, settings: GradCacheSettings, model: BaseEmbeddingModel) -> None:
        self._settings = settings
        self._model = model
        self._chunking: Chunking | None = None
        self._has_logged = False

    @property
    def is_undecided(self) -> bool:
        """True until the Chunking is found, if it depends on the batches that `find` is first called with."""
        asked = self._settings.model_dump(include=set(_MAY_BE_AUTO))
        by_default = self._settings.gradient_cache_retain is None and self._model.checkpoints_gradients
        return self._chunking is None and self._settings.use_gradient_cache and (by_default or "auto" in asked.values())

    def find(self, batches: Sequence[StepParts]) -> Chunking:
        """The Chunking, which the first call chooses for its batches and logs; later ones return the same."""
        if self._chunking is None:
            self._chunking = find_chunking(self._settings, batches)
        if self._chunking.is_on and not self._has_logged:
            self._has_logged = True
            self._log_chunks(self._chunking, batches)
        return self._chunking

    def set(self, chunking: Chunking) -> None:
        """Use this Chunking, whatever the settings ask for."""
        self._chunking = chunking

    @property
    def resolved(self) -> Mapping[str, Any]:  # Any: settings of different types
        """The settings that may be `auto`, as numbers, for checkpoints; empty before the first batch."""
        if self._chunking is None:
            return {}
        asked = self._settings.model_dump(include=set(_MAY_BE_AUTO))
        if not self._chunking.is_on:
            return asked
        numbers = (self._chunking.chunk_size, self._chunking.chunk_tokens, self._chunking.retain)
        chosen = zip(_MAY_BE_AUTO, numbers, strict=True)
        return asked | {key: number for key, number in chosen if number is not None}

    def restore(self, resolved: Mapping[str, Any]) -> None:  # Any: settings of different types
        """Use the `resolved` settings of a checkpoint, whatever memory is free now: a resumed run takes equal steps."""
        asked = self._settings.model_dump()
        replaced = [f"{key} {value:g}" for key, value in resolved.items() if asked[key] == "auto"]
        if replaced:
            _log.info("auto stays what the run began with: %s", ", ".join(replaced))
        self._settings = self._settings.model_copy(update=dict(resolved))

    def _log_chunks(self, chunking: Chunking, batches: Sequence[StepParts]) -> None:
        for words in dict.fromkeys(describe_chunks(parts.partitions(chunking), chunking) for parts in batches):
            _log.info(words)
        if any(is_batch_norm(module) for module in self._model.modules()):
            _log.info(
                "batch norms keep their statistics, since those of a chunk are not those of the batch;"
                " train_batch_norm: true needs use_gradient_cache: false"
            )


def find_chunking(settings: GradCacheSettings, batches: Sequence[StepParts]) -> Chunking:
    """The Chunking of the settings; `auto` is what memory has room for in a step of any of these batches.

    Leaves gradients and random numbers as they were.
    """
    if not settings.use_gradient_cache:
        return Chunking()
    size, tokens = settings.gradient_cache_chunk_size, settings.gradient_cache_chunk_tokens
    retain = settings.gradient_cache_retain
    if retain is None:
        retain = "auto" if batches[0].model.checkpoints_gradients else 0.0
    budget_bytes = _budget_bytes(settings, batches[0]) if "auto" in (size, tokens, retain) else 0
    if tokens is not None:
        chunking = Chunking(chunk_tokens=_choose_tokens(batches, budget_bytes) if tokens == "auto" else tokens)
    else:
        chunking = Chunking(chunk_size=_choose_rows(batches, budget_bytes) if size == "auto" else size)
    share = _choose_retain(chunking, batches, budget_bytes) if retain == "auto" else retain
    return replace(chunking, retain=share, max_hidden_state_bytes=max_hidden_state_bytes(settings))


def max_hidden_state_bytes(settings: GradCacheSettings) -> int:
    """The limit of the frozen towers' hidden states that are kept between the two forwards, in bytes."""
    return round(settings.gradient_cache_states_gib * GIB)


def check_hidden_state_limit(settings: GradCacheSettings, model: BaseEmbeddingModel) -> None:
    """Raise ConfigError for a limit of kept hidden states, where no frozen tower of the model gives any."""
    limit = settings.gradient_cache_states_gib
    if not keeps_states(model) and limit != GradCacheSettings.model_fields["gradient_cache_states_gib"].default:
        raise ConfigError(
            f"gradient_cache_states_gib: {limit} has no effect: in this {model.spec.family} model no frozen tower gives"
            " a vector per token, as a vision-language model's vision tower or a ColBERT's encoder does; take it out"
        )


def _choose_rows(batches: Sequence[StepParts], budget_bytes: int) -> int:
    """The largest chunk size within the budget of a step, of those that cut the larger side into about equal chunks."""
    most = max(1, *(side.num_rows for parts in batches for side in parts.sides))
    by = rows_by_estimate if batches[0].device.type == "cpu" else rows_by_trial
    tests = [by(parts, budget_bytes) for parts in batches]
    size = next((size for size in _candidate_sizes(most) if all(fits(size) for fits in tests)), None)
    _log_choice("gradient_cache_chunk_size", size, "rows", budget_bytes)
    return size or 1


def _choose_tokens(batches: Sequence[StepParts], budget_bytes: int) -> int:
    """The most tokens of a chunk within the budget of a step, no fewer than the longest row has."""
    counts = [row_sizes(side, parts.processor) for parts in batches for side in parts.sides if side.num_rows]
    longest = max(int(count.max()) for count in counts)
    whole = max(len(count) * int(count.max()) for count in counts)
    on_cpu = batches[0].device.type == "cpu"
    by, most = (tokens_by_estimate, max(longest, _CPU_TOKENS)) if on_cpu else (tokens_by_trial, whole)
    tests = [by(parts, budget_bytes) for parts in batches]
    sizes = (size for size in _candidate_sizes(most) if size >= longest)
    tokens = next((size for size in sizes if all(fits(size) for fits in tests)), None)
    _log_choice("gradient_cache_chunk_tokens", tokens, "tokens", budget_bytes)
    return tokens or longest


def _log_choice(key: str, chosen: int | None, unit: str, budget_bytes: int) -> None:
    """Log what `auto` is, or that not even a chunk of one row fits."""
    if chosen is None:
        _log.warning("%s: auto has room for %.3g GiB, less than a chunk of one row takes", key, budget_bytes / GIB)
    else:
        _log.info("%s: auto is %d %s here, with room for %.3g GiB", key, chosen, unit, budget_bytes / GIB)


def _candidate_sizes(most: int) -> Iterator[int]:
    """The chunk sizes to try, from all at once down to one.

    >>> list(_candidate_sizes(12))
    [12, 6, 4, 3, 2, 1]
    """
    num_chunks, last = 1, most + 1
    while last > 1:
        size = math.ceil(most / num_chunks)
        if size < last:
            yield size
        num_chunks, last = num_chunks + max(1, num_chunks // 4), size


def _choose_retain(chunking: Chunking, batches: Sequence[StepParts], budget_bytes: int) -> float:
    """The largest share of chunks that may keep their graphs within the budget, in a step of each of these batches."""
    kept = [count_retained(parts, chunking, budget_bytes) for parts in batches]
    number, total = min(kept, key=lambda counts: counts[0] / counts[1])
    if total > len(batches[0].sides):  # else it is the plain step
        _log.info("gradient_cache_retain: auto keeps the graphs of %d of %d chunks here", number, total)
    return number / total


def _budget_bytes(settings: GradCacheSettings, parts: StepParts) -> int:
    """Bytes that a step may take, less those for kept hidden states of frozen towers (at most half of them)."""
    if settings.gradient_cache_memory_gib is not None:
        budget_bytes = round(settings.gradient_cache_memory_gib * GIB)
    else:
        share = _CPU_SHARE if parts.device.type == "cpu" else _ACCELERATOR_SHARE
        budget_bytes = round(share * free_memory_bytes(parts.device))
    kept = min(max_hidden_state_bytes(settings), budget_bytes // 2) if keeps_states(parts.model) else 0
    return budget_bytes - kept
