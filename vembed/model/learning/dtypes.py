"""Mixed dtypes: trainable weights are kept in float32, frozen ones in the dtype in which they were loaded."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vembed.model.adapters.layers import is_adapter
from vembed.model.base import BaseEmbeddingModel

LOW_PRECISION = (torch.bfloat16, torch.float16)


def has_low_precision_weights(module: nn.Module) -> bool:
    """True if any parameter is bfloat16 or float16."""
    return any(parameter.dtype in LOW_PRECISION for parameter in module.parameters())


def keep_trainable_in_float32(model: BaseEmbeddingModel) -> None:
    """Cast trainable towers and layers to float32: in 16 bits an update of 2e-5 would be rounded away.

    To be called after freezing and adapters. A tower of which only adapters are trained keeps its dtype. Where one
    tower reads the other's outputs (a vision-language model), a trainable one has the whole backbone cast.
    """
    trainable = [network for network in model.towers().values() if _has_low_precision_trainable(network.parameters())]
    for network in trainable if model.has_towers_apart or not trainable else model.backbones().values():
        network.float()
    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        if _has_low_precision_trainable(parameters):
            for tensor in (*parameters, *module.buffers(recurse=False)):
                if tensor.dtype in LOW_PRECISION:
                    tensor.data = tensor.data.float()
    cast_layer_inputs(model)


def cast_layer_inputs(model: BaseEmbeddingModel) -> None:
    """Make layers cast their inputs to their weights' dtype: heads, and all layers of a backbone in mixed dtypes."""
    backbones = list(model.backbones().values())
    low = [backbone for backbone in backbones if has_low_precision_weights(backbone)]
    if not low:
        return
    inside = {id(module) for backbone in backbones for module in backbone.modules()}
    casting = [module for module in model.modules() if id(module) not in inside]
    casting += [module for backbone in low if _is_mixed(backbone) for module in backbone.modules()]
    for module in casting:
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_cast_inputs)


def _has_low_precision_trainable(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad and parameter.dtype in LOW_PRECISION for parameter in parameters)


def _is_mixed(backbone: nn.Module) -> bool:
    """True if the weights, adapters aside, are of more than one floating dtype."""
    named = backbone.named_parameters()
    return len({one.dtype for name, one in named if one.is_floating_point() and not is_adapter(name)}) > 1


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # Any: what a layer takes
    dtype = next(module.parameters(recurse=False)).dtype
    if not dtype.is_floating_point:
        return inputs
    return tuple(one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in inputs)
