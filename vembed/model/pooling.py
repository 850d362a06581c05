"""From one vector per token to one vector per item."""

import torch
from torch import Tensor

from vembed.errors import ModelError


def pool(hidden: Tensor, mask: Tensor | None, pooling: str, *, real: Tensor | None = None) -> Tensor:
    """Pool hidden [items, tokens, width] over the tokens that are in the mask to [items, width].

    mask: bool [items, tokens], None when all tokens are real. cls: the first token of the mask; last: its last one,
    under left and right padding alike; mean and max: over its tokens; mean_sqrt_len: their sum by the root of their
    number; weighted_mean: the n-th real token weighs n. real: the real tokens, where the mask leaves some of them out
    (a prompt's); they are counted for the weights. "cls+mean" puts both side by side: [items, 2 * width].

    >>> hidden = torch.tensor([[[1.0], [2.0], [9.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> [pool(hidden, mask, name).item() for name in ("cls", "last", "mean", "max")]
    [1.0, 2.0, 1.5, 2.0]
    >>> pool(hidden, mask, "cls+weighted_mean")
    tensor([[1.0000, 1.6667]])
    """
    modes = pooling.split("+")
    unknown = [mode for mode in modes if mode not in _POOLINGS and mode != "weighted_mean"]
    if unknown:
        raise ModelError(f"pooling {unknown[0]!r} is unknown; known are: {', '.join([*_POOLINGS, 'weighted_mean'])}")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    parts = [
        _weighted_mean(hidden, mask, mask if real is None else real)
        if mode == "weighted_mean"
        else _POOLINGS[mode](hidden, mask)
        for mode in modes
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return _take(hidden, mask.int().argmax(dim=1))


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _take(hidden, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (_sum(hidden, mask) / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)


def _mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    return (_sum(hidden, mask) / mask.sum(dim=1, keepdim=True).clamp(min=1).sqrt()).to(hidden.dtype)


def _weighted_mean(hidden: Tensor, mask: Tensor, real: Tensor) -> Tensor:
    weights = real.cumsum(dim=1) * mask  # [items, tokens]
    total = _sum(hidden, mask, weights.unsqueeze(-1))
    return (total / weights.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)


def _sum(hidden: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """The (weighted) sum of the mask's tokens [items, width], at least in float32."""
    wide = torch.float32 if hidden.dtype in (torch.float16, torch.bfloat16) else hidden.dtype
    kept = hidden.masked_fill(~mask.unsqueeze(-1), 0)
    if weights is not None:
        kept = kept.to(wide) * weights
    return kept.sum(dim=1, dtype=wide)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)


def _take(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


_POOLINGS = {"cls": _first, "last": _last, "mean": _mean, "max": _max, "mean_sqrt_len": _mean_sqrt_len}
