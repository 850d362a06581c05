"""What a run was made with."""

import platform

import safetensors
import torch
import transformers

from vembed.version import __version__


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    return {
        "vembed": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "platform": platform.platform(),
    }
