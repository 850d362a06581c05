"""This process's rank, seeds, and the exchange between ranks. The only module that may import torch.distributed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vembed.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

_MAX_NUMPY_SEED = 2**32
_MAX_AXES = 8
_BUCKET_NUMBERS = 2**23


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True if this process logs and writes files."""
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


def group_size() -> int:
    """Number of ranks that exchange tensors: of torch's process group, 1 without one.

    Raises UsageError in one of several processes that have no group: each would go its own way.
    """
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if world_size() > 1:
        raise UsageError(
            f"WORLD_SIZE is {world_size()}, but this process has no process group to exchange tensors in; call"
            " torch.distributed.init_process_group first"
        )
    return 1


def group_rank() -> int:
    """Number of this process in the group of `group_size`."""
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    return dist.get_rank() if group_size() > 1 else 0


def gather_rows(rows: Tensor) -> list[Tensor]:
    """The rows [rows, ...] of every rank, in order of ranks; ranks may have differing numbers of them.

    This rank's own are the tensor that was given, with its graph; the others have none. Raises UsageError, on every
    rank, when the ranks' tensors differ beyond their first axis.
    """
    import torch  # noqa: PLC0415 - heavy
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    size = group_size()
    if size == 1:
        return [rows]
    shapes = _gather_shapes(rows, size)
    if len({shape[1:] for shape in shapes}) > 1:
        raise UsageError(f"ranks cannot exchange rows of differing shapes; rank by rank they are {shapes}")
    most = max(shape[0] for shape in shapes)
    own = rows.detach()
    padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
    received = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(received, padded)
    parts = [part[: shape[0]] for part, shape in zip(received, shapes, strict=True)]
    parts[dist.get_rank()] = rows
    return parts


def gather_rows_with_gradient(rows: Tensor) -> list[Tensor]:
    """As `gather_rows`, for a loss of all rows that every rank takes: own rows get its gradient times the ranks.

    The mean over ranks (`average_gradients`, DDP) is then the gradient of one process with all rows: of the parameters
    that rows come from, each rank having a part of it, and of those that the loss alone reads, each having all of it.
    """
    parts, size = gather_rows(rows), group_size()
    if size > 1 and rows.requires_grad:
        own = rows.view_as(rows)
        own.register_hook(lambda gradient: gradient * size)  # type: ignore[no-untyped-call]
        parts[group_rank()] = own
    return parts


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace each gradient by its mean over the ranks, where a rank without one counts as zero.

    Parameters without a gradient on any rank stay so. All ranks must give the same parameters in the same order.
    """
    size = group_size()
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if size == 1 or not trainable:
        return
    used = _on_any_rank([parameter.grad is not None for parameter in trainable], trainable[0].device)
    for bucket in _buckets([parameter for parameter, some in zip(trainable, used, strict=True) if some]):
        _average_bucket(bucket, size)


def _gather_shapes(rows: Tensor, size: int) -> list[tuple[int, ...]]:
    import torch  # noqa: PLC0415 - heavy
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    shape = torch.full((_MAX_AXES,), -1, device=rows.device)
    shape[: rows.ndim] = torch.tensor(rows.shape)
    received = [torch.empty_like(shape) for _ in range(size)]
    dist.all_gather(received, shape)
    return [tuple(length for length in one.tolist() if length >= 0) for one in received]


def _on_any_rank(claims: list[bool], device: torch.device) -> list[bool]:
    import torch  # noqa: PLC0415 - heavy
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    counted = torch.tensor(claims, dtype=torch.int32, device=device)
    dist.all_reduce(counted)
    return (counted > 0).tolist()


def _buckets(parameters: Sequence[Parameter]) -> Iterator[list[Parameter]]:
    """Parameters of one device and dtype together, so many that a bucket is worth an exchange."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Parameter]] = {}
    for parameter in parameters:
        bucket = by_kind.setdefault((parameter.device, parameter.dtype), [])
        bucket.append(parameter)
        if sum(one.numel() for one in bucket) >= _BUCKET_NUMBERS:
            yield by_kind.pop((parameter.device, parameter.dtype))
    yield from by_kind.values()


def _average_bucket(parameters: Sequence[Parameter], size: int) -> None:
    import torch  # noqa: PLC0415 - heavy
    import torch.distributed as dist  # noqa: PLC0415 - heavy

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # Divided before the sum, which float16 may not hold.
    numbers = torch.cat([gradient.flatten() for gradient in gradients]) / size
    dist.all_reduce(numbers)
    parts = torch.split(numbers, [gradient.numel() for gradient in gradients])
    for part, gradient in zip(parts, gradients, strict=True):
        gradient.copy_(part.view_as(gradient))
