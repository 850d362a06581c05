"""Gradient caching: batches that memory does not limit, with the exact gradient of the whole batch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vembed.grad_cache.grad_cache import GradCache

__all__ = ["GradCache"]


def __getattr__(name: str) -> Any:  # Any: as in vembed's own
    """Import GradCache on first use, so that the settings beside it need no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'vembed.grad_cache' has no attribute {name!r}")
    return getattr(importlib.import_module("vembed.grad_cache.grad_cache"), name)
