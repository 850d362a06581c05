"""Pooling: one vector per token to one vector per item."""

import torch
from torch import Tensor

from vembed.errors import ModelError

GEM_EXPONENT = 3.0  # where the generalised mean starts; 1 is the mean, infinity the maximum
_GEM_FLOOR = 1e-6  # powers of what is not positive are not defined


def pool(
    hidden: Tensor,
    mask: Tensor | None,
    pooling: str,
    *,
    real: Tensor | None = None,
    exponent: Tensor | None = None,
) -> Tensor:
    """Pool hidden [items, tokens, width] over the tokens that are in the mask to [items, width].

    mask: bool [items, tokens], None when all tokens are real. cls: the first token of the mask; last: its last one,
    under left and right padding alike; mean and max: over its tokens; mean_sqrt_len: their sum by the root of their
    number; weighted_mean: the n-th real token weighs n. real: the real tokens, where the mask leaves some of them out
    (a prompt's); they are counted for the weights. gem: the generalised mean of what is positive, mean(x^p)^(1/p), with
    p = exponent [1], 3 by default. "cls+mean" puts both side by side: [items, 2 * width].

    >>> hidden = torch.tensor([[[1.0], [2.0], [9.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> [pool(hidden, mask, name).item() for name in ("cls", "last", "mean", "max")]
    [1.0, 2.0, 1.5, 2.0]
    >>> pool(hidden, mask, "cls+weighted_mean")
    tensor([[1.0000, 1.6667]])
    >>> pool(hidden, mask, "gem")  # the third root of (1 + 8) / 2
    tensor([[1.6510]])
    """
    modes = pooling.split("+")
    unknown = [mode for mode in modes if mode not in (*_POOLINGS, *_WITH_MORE_INPUTS)]
    if unknown:
        raise ModelError(f"pooling {unknown[0]!r} is unknown; known are: {', '.join([*_POOLINGS, *_WITH_MORE_INPUTS])}")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    real = mask if real is None else real
    exponent = hidden.new_tensor([GEM_EXPONENT]) if exponent is None else exponent
    parts = [_pool_one(mode, hidden, mask, real, exponent) for mode in modes]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _pool_one(mode: str, hidden: Tensor, mask: Tensor, real: Tensor, exponent: Tensor) -> Tensor:
    if mode == "weighted_mean":
        return _weighted_mean(hidden, mask, real)
    return _gem(hidden, mask, exponent) if mode == "gem" else _POOLINGS[mode](hidden, mask)


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


def _gem(hidden: Tensor, mask: Tensor, exponent: Tensor) -> Tensor:
    wide = torch.float32 if hidden.dtype in (torch.float16, torch.bfloat16) else hidden.dtype
    power = exponent.to(wide)
    total = _sum(hidden.to(wide).clamp(min=_GEM_FLOOR).pow(power), mask)
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).pow(1 / power).to(hidden.dtype)


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
_WITH_MORE_INPUTS = ("weighted_mean", "gem")  # than hidden states and mask
