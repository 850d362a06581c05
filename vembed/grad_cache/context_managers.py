"""RandContext: run a forward again with the random numbers of the first time."""

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
