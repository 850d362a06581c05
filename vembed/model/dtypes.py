"""Weights in two dtypes: what learns is held in float32, what does not as it was loaded."""

from typing import Any

import torch
from torch import Tensor, nn

from vembed.model.adapted import is_adapter
from vembed.model.base import BaseEmbeddingModel

LOW = (torch.bfloat16, torch.float16)


def has_low_weights(module: nn.Module) -> bool:
    """Whether any weight is held in a dtype of less precision than float32."""
    return any(parameter.dtype in LOW for parameter in module.parameters())


def hold_learning_in_float32(model: BaseEmbeddingModel) -> None:
    """Cast the towers, and the layers outside them, of which weights learn. An update of 2e-5 would be lost in less.

    To be called when it is settled what learns. Towers of which only adapters learn stay as they are.
    """
    networks = list(model.towers().values())
    inside = {id(module) for network in networks for module in network.modules()}
    outside = [module for module in model.modules() if id(module) not in inside and not any(module.children())]
    for module in (*networks, *outside):
        if any(one.requires_grad and one.dtype in LOW for one in module.parameters()):
            module.float()
    join_dtypes(model)


def join_dtypes(model: BaseEmbeddingModel) -> None:
    """Let float32 layers take what layers of less precision give: heads, and projections that learn."""
    backbones = list(model.backbones().values())
    if not any(has_low_weights(backbone) for backbone in backbones):
        return
    inside = {id(module) for backbone in backbones for module in backbone.modules()}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        learns = any(parameter.requires_grad for parameter in own)
        if own and not is_adapter(name) and (id(module) not in inside or learns):
            module.register_forward_pre_hook(_cast_inputs)


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # Any: what a layer takes
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in inputs)
