"""Weights in two dtypes: what learns is held in float32, what does not as it was loaded."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vembed.model.adapters.layers import is_adapter
from vembed.model.base import BaseEmbeddingModel

LOW = (torch.bfloat16, torch.float16)


def has_low_weights(module: nn.Module) -> bool:
    """Whether any weight is held in a dtype of less precision than float32."""
    return any(parameter.dtype in LOW for parameter in module.parameters())


def hold_learning_in_float32(model: BaseEmbeddingModel) -> None:
    """Cast towers and layers that learn, and what is no tower apart from them. An update of 2e-5 would be lost in less.

    To be called when it is settled what learns. Towers of which only adapters learn stay as they are.
    """
    learning = [network for network in model.towers().values() if _learns_low(network.parameters())]
    for network in learning if model.has_towers_apart or not learning else model.backbones().values():
        network.float()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if _learns_low(own):
            for tensor in (*own, *module.buffers(recurse=False)):
                if tensor.dtype in LOW:
                    tensor.data = tensor.data.float()
    join_dtypes(model)


def join_dtypes(model: BaseEmbeddingModel) -> None:
    """Let layers take what layers of another dtype give: heads, and all of a backbone that is held in both."""
    backbones = list(model.backbones().values())
    low = [backbone for backbone in backbones if has_low_weights(backbone)]
    if not low:
        return
    inside = {id(module) for backbone in backbones for module in backbone.modules()}
    joined = [module for module in model.modules() if id(module) not in inside]
    joined += [module for backbone in low if _is_mixed(backbone) for module in backbone.modules()]
    for module in joined:
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_cast_inputs)


def _learns_low(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad and parameter.dtype in LOW for parameter in parameters)


def _is_mixed(backbone: nn.Module) -> bool:
    """Whether weights that belong to no adapter are held in more than one dtype."""
    named = backbone.named_parameters()
    return len({one.dtype for name, one in named if one.is_floating_point() and not is_adapter(name)}) > 1


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # Any: what a layer takes
    dtype = next(module.parameters(recurse=False)).dtype
    if not dtype.is_floating_point:
        return inputs
    return tuple(one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in inputs)
