"""A ready training step for any torch modules and optimiser, through the gradient cache."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vembed.errors import NotFiniteError, UsageError
from vembed.grad_cache.cachex.functional import ChunkedSide, cached_backward
from vembed.utils.distributed import average_gradients


@dataclass(frozen=True)
class StepReport:
    """The loss of the whole batch, and the norm of its gradient before clipping (infinite or NaN: no update)."""

    loss: float
    grad_norm: float


def train_step(
    sides: Sequence[ChunkedSide],
    loss_function: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float = math.inf,
    scaler: torch.amp.GradScaler | None = None,
    retain: float = 0.0,
) -> StepReport:
    """One update of the optimiser's parameters by the gradient of `loss_function(embeddings of each side)`.

    Gradients are cleared, added chunk by chunk, averaged over the ranks of a process group if there is one (models are
    not to be wrapped in DistributedDataParallel), clipped to `max_grad_norm`, and applied. With a scaler, for a side's
    `encode` under float16 autocast, a gradient that is not finite is no update and lowers the scale. Without one a loss
    or gradient that is not finite raises NotFiniteError, and nothing is updated. Raises UsageError when no parameter
    got a gradient. retain: as in `cached_backward`.

    >>> layer = torch.nn.Linear(2, 2)
    >>> side = ChunkedSide(layer, torch.ones(8, 2), chunk_size=3)
    >>> report = train_step([side], lambda outputs: outputs.sum(), torch.optim.SGD(layer.parameters(), lr=0.1))
    >>> round(report.grad_norm, 3)  # 8 for each of 6 numbers
    19.596
    """
    optimizer.zero_grad(set_to_none=True)
    loss_scale = 1.0 if scaler is None else scaler.scale
    loss = cached_backward(sides, loss_function, loss_scale=loss_scale, retain=retain)
    parameters = list(_parameters(optimizer))
    average_gradients(parameters)
    if all(parameter.grad is None for parameter in parameters):
        raise UsageError(
            "no parameter of the optimizer got a gradient: neither the embeddings nor the loss has a graph"
        )
    if scaler is not None:
        scaler.unscale_(optimizer)
    report = StepReport(loss.item(), float(nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif math.isfinite(report.loss) and math.isfinite(report.grad_norm):
        optimizer.step()
    else:
        raise NotFiniteError(
            f"the loss is {report.loss} and the gradient's norm {report.grad_norm}; lower the learning rate, or look"
            " for numbers that are not finite in the inputs"
        )
    return report


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
