"""Linear layers by oneDNN, where MKL would leave half of the processor unused.

torch multiplies float32 matrices by MKL, which chooses its kernels by the processor's maker: on AMD's with AVX-512 it
runs those for AVX2. oneDNN, which torch brings too, asks what the processor can do: twice the speed, the same float32.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_CPU_INFO = Path("/proc/cpuinfo")
_here = threading.local()


def quick_linear() -> contextlib.AbstractContextManager[object]:
    """Within it, this thread's linear layers take the faster library in their forward; results differ by rounding."""
    return _OneDnnLinear() if mkl_is_slow() else contextlib.nullcontext()


def quick_again() -> tuple[contextlib.AbstractContextManager[object], contextlib.AbstractContextManager[object]]:
    """For torch's `checkpoint(context_fn=...)`: layers are computed again by the library that computed them first.

    The backward pass is out of `quick_linear`'s reach: a mode is left while torch's own functions run, `backward` too.
    """
    return contextlib.nullcontext(), _OneDnnLinear() if getattr(_here, "depth", 0) else contextlib.nullcontext()


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is a processor whose AVX-512 units only oneDNN uses. False where it cannot be found out."""
    libraries = (torch.backends.mkl, torch.backends.mkldnn)
    return (
        all(library.is_available() for library in libraries)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _cpu_info()
    )


def _cpu_info() -> str:
    try:
        return _CPU_INFO.read_text()
    except OSError:
        return ""


class _OneDnnLinear(TorchFunctionMode):
    """Sends torch's `linear` to oneDNN, or leaves it alone where oneDNN cannot do the same."""

    def __enter__(self) -> "_OneDnnLinear":
        _here.depth = getattr(_here, "depth", 0) + 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        _here.depth -= 1
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    # Any: whatever torch calls, with whatever it gives
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.linear and _can_take(*args, **kwargs):
            return _run(*args, **kwargs)
        return function(*args, **kwargs)


def _can_take(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:  # noqa: A002 - as torch names it
    """Dense float32 on the CPU, without autocast and compiler. Sharded or quantised go their way."""
    tensors = [input, weight] if bias is None else [input, weight, bias]
    return (
        all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and input.ndim > 1
        and input.numel() > 0
    )


def _run(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - as torch names it
    """[..., in], [out, in], [out] -> [..., out], with a graph where torch would make one."""
    tensors = [input, weight] if bias is None else [input, weight, bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        learned: Tensor = _LearnedLinear.apply(input, weight, bias)
        return learned
    return _linear(input, weight, bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - as torch names it
    """[..., in], [out, in], [out] -> [..., out]."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return result


class _LearnedLinear(torch.autograd.Function):
    """oneDNN's forward with torch's own backward, which keeps what torch's would: no input for a frozen weight."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch exports no type
        input: Tensor,  # noqa: A002 - as torch names it
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] else None,
        )
        return _linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # Any: as above
        gradient: Tensor,
    ) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # [rows, out]
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            rows.T @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )
