"""Comparing gradients as STYLE rule 23 says: the norm of the difference over the norm of the whole gradient."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def take_gradients(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The gradients by name, removed from their parameters; parameters without one are left out."""
    taken = {}
    for name, parameter in parameters:
        if parameter.grad is not None:
            taken[name] = parameter.grad
            parameter.grad = None
    return taken


def relative_difference(gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of the whole expected gradient."""
    assert set(gradients) == set(expected)
    difference = _norm(gradients[name].double() - expected[name].double() for name in expected)
    whole = _norm(gradient.double() for gradient in expected.values())
    assert whole > 0
    return difference / whole


def assert_gradients_equal(
    gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float | None = None
) -> None:
    """As a whole, and tensor by tensor above a floor of the largest tensor's norm (below it is noise).

    tolerance: in the place of that of the gradients' dtype.
    """
    tolerance = TOLERANCE[next(iter(expected.values())).dtype] if tolerance is None else tolerance
    assert relative_difference(gradients, expected) < tolerance
    floor = tolerance * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((gradients[name] - gradient).norm())
        assert difference <= tolerance * float(gradient.norm()) + floor, name


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
