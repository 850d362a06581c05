"""Linear layers by oneDNN: the same numbers, and only where it can do the same."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vembed.utils import onednn
from vembed.utils.onednn import quick_again, quick_linear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch comes without oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Every linear layer that oneDNN ran, whatever processor this is."""
    ran = []
    linear = onednn._linear
    monkeypatch.setattr(onednn, "_linear", lambda *args, **kwargs: ran.append(args) or linear(*args, **kwargs))
    monkeypatch.setattr(onednn, "mkl_is_slow", lambda: True)
    return ran


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (3, 4, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_torch(calls, shape, bias):
    layer, features = nn.Linear(8, 6, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        expected = layer(features)
        with quick_linear():
            torch.testing.assert_close(layer(features), expected)
            torch.testing.assert_close(layer(features.transpose(-2, -1).contiguous().transpose(-2, -1)), expected)
    assert len(calls) == 2


@needs_onednn
def test_what_onednn_cannot_do_is_left_alone(calls):
    layer, features = nn.Linear(8, 6), torch.randn(3, 8)
    with quick_linear(), torch.no_grad():
        assert layer.double()(features.double()).dtype == torch.float64
        assert layer.float()(features[0]).shape == (6,)
        assert layer(features[:0]).shape == (0, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(features).dtype == torch.bfloat16
        assert layer(input=features).shape == (3, 6)
    assert len(calls) == 1


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 8)])
@pytest.mark.parametrize("learns", ["all", "input", "weight", "bias"])
def test_gradients_are_those_of_torch(calls, shape, learns):
    layer, features = nn.Linear(8, 6), torch.randn(shape)
    tensors = {"input": features, "weight": layer.weight, "bias": layer.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(learns in {"all", name})
    gradients = []
    for quick in (False, True):
        with quick_linear() if quick else contextlib.nullcontext():
            layer(features).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors.values()])
        for tensor in tensors.values():
            tensor.grad = None
    assert len(calls) == 1
    for gradient, expected in zip(*gradients[::-1], strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected)


@needs_onednn
@pytest.mark.parametrize("quick", [False, True])
def test_what_is_computed_again_is_computed_by_the_same_library(calls, quick):
    """Torch compares what a layer kept with what it keeps the second time; the two libraries keep other tensors."""
    layer = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))
    features = torch.randn(5, 8, requires_grad=True)
    with quick_linear() if quick else contextlib.nullcontext():
        result = checkpoint(layer, features, use_reentrant=False, context_fn=quick_again)
    assert len(calls) == (2 if quick else 0)
    result.square().sum().backward()
    assert len(calls) == (4 if quick else 0)
    nn.Linear(8, 6)(features)
    assert len(calls) == (4 if quick else 0)


def test_other_processors_keep_torchs_own(calls, monkeypatch):
    monkeypatch.setattr(onednn, "mkl_is_slow", lambda: False)
    with torch.inference_mode(), quick_linear():
        nn.Linear(8, 6)(torch.randn(3, 8))
    assert not calls


def test_the_processor_is_known_by_its_maker(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    for maker, slow in (("AuthenticAMD", both), ("GenuineIntel", False)):
        monkeypatch.setattr(onednn, "_cpu_info", lambda maker=maker: f"vendor_id\t: {maker}\n")
        assert onednn.mkl_is_slow.__wrapped__() is slow  # not what was found out of this machine
