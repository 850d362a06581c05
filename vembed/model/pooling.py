"""From one vector per token to one vector per item."""

import torch
from torch import Tensor

from vembed.errors import ModelError


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool hidden [items, tokens, width] over the tokens that are real to [items, width].

    mask: bool [items, tokens], True for real tokens, None when all are. cls: the first real token; last: the last
    real token, under left and right padding alike; mean and max: over the real tokens.

    >>> hidden = torch.tensor([[[1.0], [2.0], [9.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> [pool(hidden, mask, name).item() for name in ("cls", "last", "mean", "max")]
    [1.0, 2.0, 1.5, 2.0]
    """
    if pooling not in _POOLINGS:
        raise ModelError(f"pooling {pooling!r} is unknown; known are: {', '.join(_POOLINGS)}")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return _POOLINGS[pooling](hidden, mask)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return _take(hidden, mask.int().argmax(dim=1))


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _take(hidden, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    real = hidden.masked_fill(~mask.unsqueeze(-1), 0)
    wide = torch.float32 if hidden.dtype in (torch.float16, torch.bfloat16) else hidden.dtype
    total = real.sum(dim=1, dtype=wide)  # [items, width]
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)


def _take(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


_POOLINGS = {"cls": _first, "last": _last, "mean": _mean, "max": _max}
