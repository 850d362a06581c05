"""Recognises batch norm, whose output depends on the rest of the chunk, and which so may not learn in chunks."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_batch_norm(module: nn.Module) -> bool:
    """True if a layer is batch norm, of one to three dimensions, lazy, or synchronised between processes.

    >>> is_batch_norm(nn.BatchNorm1d(4)), is_batch_norm(nn.InstanceNorm1d(4)), is_batch_norm(nn.LayerNorm(4))
    (True, False, False)
    """
    # torch's private base: the public classes miss what Lightning makes of SyncBatchNorm after training.
    return isinstance(module, _BatchNorm)
