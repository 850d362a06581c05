"""The generalised mean: against a loop, at its extremes, in low precision, and its gradient by the exponent."""

import pytest
import torch

from vembed.errors import ModelError
from vembed.model.vectors.pooling import GEM_EXPONENT, pool

HIDDEN = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)


def naive(hidden: torch.Tensor, mask: torch.Tensor, exponent: float) -> torch.Tensor:
    rows = []
    for tokens, real in zip(hidden.tolist(), mask.tolist(), strict=True):
        kept = [token for token, is_real in zip(tokens, real, strict=True) if is_real]
        columns = [[max(value, 1e-6) ** exponent for value in column] for column in zip(*kept, strict=True)]
        rows.append([(sum(column) / len(column)) ** (1 / exponent) for column in columns])
    return torch.tensor(rows)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 7.5])
def test_gem_equals_a_loop(exponent):
    pooled = pool(HIDDEN, MASK, "gem", exponent=torch.tensor([exponent]))
    assert torch.allclose(pooled, naive(HIDDEN, MASK, exponent), atol=1e-6)


def test_gem_without_an_exponent_starts_at_three():
    assert GEM_EXPONENT == 3
    assert torch.equal(pool(HIDDEN, MASK, "gem"), pool(HIDDEN, MASK, "gem", exponent=torch.tensor([3.0])))


def test_gem_lies_between_the_mean_and_the_maximum():
    positive = HIDDEN.abs() + 0.1
    one, large = (pool(positive, MASK, "gem", exponent=torch.tensor([power])) for power in (1.0, 60.0))
    assert torch.allclose(one, pool(positive, MASK, "mean"), atol=1e-6)
    assert torch.allclose(large, pool(positive, MASK, "max"), rtol=0.03)


def test_gem_of_what_is_nowhere_positive_has_finite_gradients():
    hidden = -HIDDEN.abs().requires_grad_()
    exponent = torch.tensor([3.0], requires_grad=True)
    pool(hidden, MASK, "gem", exponent=exponent).sum().backward()
    assert exponent.grad is not None
    assert exponent.grad.isfinite().all()


def test_the_exponent_s_gradient_is_that_of_finite_differences():
    exponent = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    hidden = HIDDEN.double()
    assert torch.autograd.gradcheck(lambda power: pool(hidden, MASK, "gem", exponent=power), (exponent,))


def test_gem_in_low_precision_is_computed_in_float32():
    half = pool(HIDDEN.bfloat16(), MASK, "gem")
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), pool(HIDDEN.bfloat16().float(), MASK, "gem"), atol=1e-2)


def test_several_poolings_stand_side_by_side():
    parts = [pool(HIDDEN, MASK, name) for name in ("cls", "gem")]
    assert torch.equal(pool(HIDDEN, MASK, "cls+gem"), torch.cat(parts, dim=-1))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ModelError, match="pooling 'median' is unknown; known are: cls, last, mean"):
        pool(HIDDEN, MASK, "median")
