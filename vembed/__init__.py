"""Data in, fine-tuned embedding model and evaluation report out."""

import importlib
from typing import TYPE_CHECKING, Any

from vembed.version import __version__

if TYPE_CHECKING:
    from vembed.inference import Predictor
    from vembed.losses.factory import LossFactory
    from vembed.model.modeling import VisualRetrievalModel
    from vembed.trainer import Trainer

__all__ = ["LossFactory", "Predictor", "Trainer", "VisualRetrievalModel", "__version__"]

_HOMES = {
    "LossFactory": "vembed.losses.factory",
    "Predictor": "vembed.inference",
    "Trainer": "vembed.trainer",
    "VisualRetrievalModel": "vembed.model.modeling",
}


def __getattr__(name: str) -> Any:  # Any: each public name has a type of its own
    """Import a public name on first use, so that `import vembed` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vembed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
