"""Layers with LoRA adapters: found in a network, merged into plain weights, or removed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vembed.errors import CheckpointError

ADAPTER = "default"  # peft's name for the one adapter of a network
_LEAST_TOLERANCE = 1e-4


def is_adapter(name: str) -> bool:
    """True for the name of an adapter's parameter.

    >>> is_adapter("layer.0.query.lora_A.default.weight"), is_adapter("layer.0.query.base_layer.weight")
    (True, False)
    """
    return ".lora_" in name


def layers_with_adapters(network: nn.Module) -> Iterator[tuple[str, Any]]:  # Any: peft is untyped here
    """Name and module of each layer that has an adapter (peft's LoRA layers)."""
    for name, module in network.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module) and hasattr(module, "get_delta_weight"):
            yield name, module


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's state dict with adapters merged into the weights, by its names without adapters; changes nothing."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if not is_adapter(name)
    }
    for name, layer in layers_with_adapters(network):
        state[f"{name}.weight"] = merged_weight(layer)
    return state


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:  # Any: as above
    """W + scale * B A in the weight's dtype, summed in float32; with DoRA each row then gets its learned magnitude.

    Raises CheckpointError for quantised weights, which cannot hold the sum.
    """
    base = layer.get_base_layer().weight
    if not base.is_floating_point():
        raise CheckpointError("an adapter cannot be merged into 4-bit weights; save the adapter alone")
    dtype = torch.promote_types(base.dtype, torch.float32)
    weight: Tensor = base.to(dtype) + layer.get_delta_weight(ADAPTER).to(dtype)
    if ADAPTER in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.to(dtype).flatten()
        factor: Tensor = magnitude / weight.flatten(1).norm(dim=1)
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    merged: Tensor = weight.to(base.dtype)
    return merged


def remove_zero_adapters(network: nn.Module) -> None:
    """Remove the adapters whose B matrix is zero, as it is before training; the layers compute the same without.

    DoRA's stay: it scales rows anew, by factors that are 1 to within rounding only.
    """
    for name, layer in list(layers_with_adapters(network)):
        if ADAPTER not in layer.lora_magnitude_vector and not layer.lora_B[ADAPTER].weight.any():
            _replace(network, name, layer.get_base_layer())


def merge_adapters(network: nn.Module) -> None:
    """Replace the layers with adapters by plain layers with merged weights.

    Raises CheckpointError that names the layers whose output would change by more than rounding.
    """
    wrong = []
    for name, layer in list(layers_with_adapters(network)):
        plain = layer.get_base_layer()
        probe = _probe(plain)
        with torch.no_grad():
            expected = layer.eval()(probe).float()
            plain.weight.copy_(merged_weight(layer))
            error = (plain(probe).float() - expected).norm() / expected.norm()
        tolerance = max(_LEAST_TOLERANCE, 4 * torch.finfo(plain.weight.dtype).eps)
        if not error <= tolerance:  # NaN too
            wrong.append(name)
        _replace(network, name, plain)
    if wrong:
        raise CheckpointError(
            f"merged weights do not give what the adapter gives in {len(wrong)} layers, such as {wrong[0]!r}"
        )
    if hasattr(network, "peft_config"):
        del network.peft_config


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(network.get_submodule(parent), own_name, layer)


def _probe(layer: nn.Module) -> Tensor:
    """Random inputs for a layer, the same each time: [4, inputs], of a convolution one image as large as its kernel."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    shape: tuple[int, ...] = (4, weight.shape[1])
    if isinstance(layer, nn.Conv2d):
        shape = (
            1,
            layer.in_channels,
            *(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)),
        )
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return probe.to(weight.device, weight.dtype)
