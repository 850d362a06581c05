"""Short-circuit a forward: methods that return known outputs for the time of one run, or end it early."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, finfo, nn

from vembed.errors import ModelError

# Errors of a forward that cannot use a known output.
FORWARD_ERRORS = (ModelError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
_ROUNDING = 8  # machine epsilons of the largest number; without padding, equal to the bit


class EarlyExit(Exception):
    """Ends a forward as soon as the wanted output is computed; carries it."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


class KnownOutput:
    """A function that returns the same output for any arguments, and counts its calls."""

    def __init__(self, output: object) -> None:
        self._output = output
        self.num_calls = 0

    def __call__(self, *_inputs: object, **_options: object) -> object:
        self.num_calls += 1
        return self._output


@contextmanager
def methods_replaced(methods: Mapping[tuple[nn.Module, str], object]) -> Iterator[None]:
    """Replace methods (module, name) by functions within the block, and restore them after it."""
    before = {(module, name): module.__dict__.get(name) for module, name in methods}
    for (module, name), function in methods.items():
        module.__dict__[name] = function
    try:
        yield
    finally:
        for (module, name), method in before.items():
            if method is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = method


def equal_within_rounding(one: Tensor, other: Tensor) -> bool:
    """True if two tensors of one shape are equal within rounding; False with any NaN."""
    largest = other.abs().max()
    return bool((one - other).abs().max() <= _ROUNDING * finfo(other.dtype).eps * largest)
