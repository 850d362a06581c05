"""Run a forward again as it was the first time: with its random numbers (RandContext), under its autocast."""

from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor


class RandContext:
    """Remembers the random state at its making; inside `with`, that state is back; after it, the state from before.

    CPU, and the CUDA, MPS or other accelerators that hold one of `tensors` or are the current one.

    >>> context = RandContext()
    >>> first = torch.rand(2)
    >>> with context:
    ...     again = torch.rand(2)
    >>> torch.equal(first, again)
    True
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._devices = {torch.device("cpu"), *_current_accelerators(), *(tensor.device for tensor in tensors)}
        self._states = _read_states(self._devices)
        self._outer: list[dict[torch.device, Tensor]] = []

    def __enter__(self) -> None:
        self._outer.append(_read_states(self._devices))
        _write_states(self._states)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _write_states(self._outer.pop())


def _current_accelerators() -> list[torch.device]:
    """The accelerator a model without inputs there would use; CUDA is not started for the purpose."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return [torch.device("cuda", torch.cuda.current_device())]
    if torch.backends.mps.is_available():
        return [torch.device("mps", 0)]
    return []


def _read_states(devices: set[torch.device]) -> dict[torch.device, Tensor]:
    return {device: _read_state(device) for device in devices}


def _read_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    if device.type == "mps":
        return torch.mps.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _write_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        elif device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


class AutocastContext:
    """Remembers the autocast at its making, on the CPU and the devices of `tensors`; inside `with`, that is back.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     context = AutocastContext()
    >>> with context:
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """

    def __init__(self, *tensors: Tensor) -> None:
        devices = {"cpu", *(device.type for device in _current_accelerators()), *(one.device.type for one in tensors)}
        self._states = [
            (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            for device in sorted(devices)
            if torch.amp.is_autocast_available(device)
        ]
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        for device, dtype, enabled in self._states:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        self._entered.append(stack)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered.pop().__exit__(kind, error, traceback)
