"""A loss whose `backward()` is the cached one, for frameworks that take a loss and call backward themselves.

Lightning's automatic optimisation, Accelerate's `accelerator.backward` and transformers' `Trainer.compute_loss` do.
Moves 1 and the value of move 2 (see `cachex.functional`) happen when the loss is made; the rest when its gradient is
asked for, with whatever factor the framework puts before it (a scaler's, accumulation's).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vembed.grad_cache.cachex.functional import ChunkedSide, embed_sides, under_autocast_of_now
from vembed.grad_cache.cachex.tree_utils import list_tensors


def deferred_loss(sides: Sequence[ChunkedSide], loss_function: Callable[..., Tensor], *, retain: float = 0.0) -> Tensor:
    """`loss_function(embeddings of each side)`, a scalar; its `backward()`, once, adds the gradient of the whole batch.

    Inputs and parameters must not change between. `torch.autograd.grad` of it is None: gradients are added to `.grad`.
    retain: as in `cached_backward`.

    >>> layer = torch.nn.Linear(2, 1)
    >>> loss = deferred_loss([ChunkedSide(layer, torch.ones(4, 2), chunk_size=3)], lambda outputs: outputs.sum())
    >>> (loss / 4).backward()
    >>> layer.bias.grad
    tensor([1.])
    """
    alike = [replace(side, encode=under_autocast_of_now(side.encode, list_tensors(side.inputs))) for side in sides]
    embeddings, pass_back = embed_sides(alike, retain)
    with torch.enable_grad():
        loss = loss_function(*embeddings)

    def backward(gradient: Tensor) -> None:
        torch.autograd.backward(loss, gradient)
        pass_back()

    trigger = torch.zeros((), device=loss.device, requires_grad=True)
    value: Tensor = _Deferred.apply(trigger, loss.detach(), backward)
    return value


class _Deferred(torch.autograd.Function):
    """Gives `value`; its backward calls `backward` with the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, _trigger: Tensor, value: Tensor, backward: Callable[[Tensor], None]) -> Tensor:
        ctx.run = backward  # Any, above: torch exports no type
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        with torch.enable_grad():
            ctx.run(gradient)
        return None, None, None
