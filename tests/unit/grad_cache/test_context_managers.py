"""RandContext brings random numbers back, and leaves the outer state as if nothing had been."""

import pytest
import torch

from vembed.grad_cache.context_managers import AutocastContext, RandContext

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


@pytest.mark.skipif(not hasattr(torch.mps, "get_rng_state"), reason="torch without MPS")
def test_the_generator_of_mps_is_read_and_written_through_torch_mps(monkeypatch):
    """No Apple device here, so the two calls are watched: state out at the making, in and out again around `with`."""
    kept = {"state": torch.tensor([1], dtype=torch.uint8)}

    def read() -> torch.Tensor:
        return kept["state"].clone()

    monkeypatch.setattr(torch.mps, "get_rng_state", read)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: kept.update(state=state.clone()))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    context = RandContext()
    kept["state"] += 1
    with context:
        assert kept["state"].item() == 1
        kept["state"] += 5
    assert kept["state"].item() == 2


def test_autocast_comes_back_as_it_was_wherever_it_is_entered():
    def dtype() -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with torch.autocast("cpu", dtype=torch.bfloat16):
        on = AutocastContext()
    off = AutocastContext()
    with on:
        assert dtype() == torch.bfloat16
        with off:
            assert dtype() == torch.float32
            with on:
                assert dtype() == torch.bfloat16
        assert dtype() == torch.bfloat16
    assert dtype() == torch.float32
