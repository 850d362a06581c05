"""Which process this is, and seeds. The only module that may import torch.distributed."""

import os
import random

from vembed.errors import UsageError

_MAX_NUMPY_SEED = 2**32


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process logs and writes files."""
    return rank() == 0


def require_one_process() -> None:
    """Refuse a launch with several processes. Raises UsageError.

    Without exchange of documents and gradients each process would train a model of its own, and all would write
    the same files.
    """
    if world_size() > 1:
        raise UsageError(
            f"WORLD_SIZE is {world_size()}: this version trains in one process. Start it without torchrun, accelerate"
            " launch or srun, or unset WORLD_SIZE; gradient_cache_chunk_size lets one process train large batches."
        )


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, and ask for the deterministic kind of convolution."""
    import numpy as np  # noqa: PLC0415 - heavy
    import torch  # noqa: PLC0415 - heavy

    random.seed(seed)
    np.random.seed(seed % _MAX_NUMPY_SEED)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
