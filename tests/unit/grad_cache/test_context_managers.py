"""RandContext brings random numbers back, and leaves the outer state as if nothing had been."""

import pytest
import torch

from vembed.grad_cache.context_managers import RandContext

DEVICES = ["cpu"]
DEVICES += ["cuda"] if torch.cuda.is_available() else []
DEVICES += ["mps"] if torch.backends.mps.is_available() else []


@pytest.mark.parametrize("device", DEVICES)
def test_random_numbers_come_again_and_the_outer_stream_goes_on(device):
    torch.manual_seed(0)
    expected = [torch.rand(3, device=device) for _ in range(2)]
    torch.manual_seed(0)
    context = RandContext(torch.zeros(1, device=device))
    first = torch.rand(3, device=device)
    for _ in range(2):
        with context:
            assert torch.equal(torch.rand(3, device=device), first)
    assert torch.equal(first, expected[0])
    assert torch.equal(torch.rand(3, device=device), expected[1])


def test_the_outer_state_comes_back_after_an_error():
    torch.manual_seed(0)
    context = RandContext()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), context:
        torch.rand(3).view(torch.randint(5, 9, (1,)).item())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_context_can_be_entered_within_itself():
    context = RandContext()
    with context:
        first = torch.rand(2)
        with context:
            assert torch.equal(torch.rand(2), first)
        second = torch.rand(2)
    assert not torch.equal(first, second)
    with context:
        assert torch.equal(torch.rand(4), torch.cat([first, second]))
