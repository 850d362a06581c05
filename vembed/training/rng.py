"""The random generators of this process as tensors, so that a checkpoint can hold them without a pickle."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def capture_rng() -> dict[str, Tensor]:
    """States of torch's (CPU and accelerator), NumPy's and Python's generators."""
    states = {"torch": torch.get_rng_state(), **_python_states(), **_numpy_states()}
    if torch.cuda.is_available():
        states |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_rng(states: Mapping[str, Tensor]) -> None:
    """Put the generators where `capture_rng` found them. States of devices that are not here are left out."""
    torch.set_rng_state(states["torch"])
    version, *words = states["python"].tolist()
    pending = states["python.gauss"].tolist()
    random.setstate((version, tuple(words), pending[0] if pending else None))
    keys, gauss = states["numpy.keys"].numpy(), states["numpy.gauss"].item()
    position, has_gauss = states["numpy.position"].tolist()
    np.random.set_state(("MT19937", keys.astype(np.uint32), position, has_gauss, gauss))
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Restore the generators at the end of the block, to what they were at its start."""
    states = capture_rng()
    try:
        yield
    finally:
        restore_rng(states)


def _python_states() -> dict[str, Tensor]:
    """Version and words, int64 [626], and the pending second of two normal deviates, float64 [0 or 1]."""
    version, words, pending = random.getstate()
    return {
        "python": torch.tensor([version, *words]),
        "python.gauss": torch.tensor([] if pending is None else [pending], dtype=torch.float64),
    }


def _numpy_states() -> dict[str, Tensor]:
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    inner = state["state"]
    return {
        "numpy.keys": torch.from_numpy(inner["key"].astype(np.int64)),
        "numpy.position": torch.tensor([inner["pos"], state["has_gauss"]]),
        "numpy.gauss": torch.tensor(state["gauss"], dtype=torch.float64),
    }
