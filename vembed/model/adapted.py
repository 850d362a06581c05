"""Plain weights of a network that carries adapters."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def merged_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The weights of a network with its adapters merged in, under the names it has without them. Changes nothing."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in backbone.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, layer in _adapted_layers(backbone):
            weight = layer.get_base_layer().weight
            state[f"{name}.weight"] = weight + layer.get_delta_weight("default").to(weight.dtype)
    return state


def _adapted_layers(backbone: nn.Module) -> Iterator[tuple[str, Any]]:  # Any: peft is untyped here
    for name, module in backbone.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module) and hasattr(module, "get_delta_weight"):
            yield name, module
