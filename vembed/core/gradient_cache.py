"""Deprecated: the former home of `vembed.grad_cache.GradCache`."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:  # Any: as in vembed's own
    """GradCache, with a warning that says where it lives."""
    if name != "GradCache":
        raise AttributeError(f"module 'vembed.core.gradient_cache' has no attribute {name!r}")
    message = "vembed.core.gradient_cache is deprecated; import GradCache from vembed.grad_cache"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    from vembed.grad_cache.grad_cache import GradCache  # noqa: PLC0415 - importing the module alone does not warn

    return GradCache
