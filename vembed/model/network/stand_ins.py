"""For the time of one run, what is known already stands in the place of what would compute it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, finfo, nn

from vembed.errors import ModelError

# What code raises that goes on from its parts' outputs in another way.
MISFITS = (ModelError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
_ROUNDING = 8  # units in the last place of the largest number; bit-equal where padding is none


class Reached(Exception):
    """What is wanted is computed, and the run ends there."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


class Given:
    """A function that gives the same each time, and counts how often it was asked."""

    def __init__(self, output: object) -> None:
        self._output = output
        self.num_calls = 0

    def __call__(self, *_inputs: object, **_options: object) -> object:
        self.num_calls += 1
        return self._output


@contextmanager
def replaced(methods: Mapping[tuple[nn.Module, str], object]) -> Iterator[None]:
    """These methods of modules, by their names, are the given functions in the block, and afterwards what they were."""
    before = {(module, name): module.__dict__.get(name) for module, name in methods}
    for (module, name), function in methods.items():
        module.__dict__[name] = function
    try:
        yield
    finally:
        for (module, name), own in before.items():
            if own is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = own


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, within rounding; never if one is not a number."""
    largest = other.abs().max()
    return bool((one - other).abs().max() <= _ROUNDING * finfo(other.dtype).eps * largest)
