"""The collators by name."""

from collections.abc import Sequence
from typing import Protocol

from vembed.registry import Registry
from vembed.types import Batch, LoadedExample


class Collate(Protocol):
    """Turns loaded examples into one batch."""

    def __call__(self, examples: Sequence[LoadedExample], epoch: int = 0) -> Batch: ...


class CollatorClass(Protocol):
    """A registered class, or function, that makes a collator."""

    def __call__(self, *, num_hard_negatives: int | None = None, seed: int = 0) -> Collate: ...


CollatorRegistry: Registry[CollatorClass] = Registry("collator")
CollatorRegistry.register_lazy("default", "vembed.data.collators.default:Collator")
CollatorRegistry.register_lazy("qwen3_vl", "vembed.data.collators.qwen3_vl:Qwen3VLCollator")
