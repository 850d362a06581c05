"""The optimiser's tensors by parameter name, for a checkpoint, and back; and a checksum of trainable weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.parameters import parameter_infos

NamedParameters = Sequence[tuple[str, Parameter]]

_OPTIMIZER = "optimizer/"


def named_parameters(model: BaseEmbeddingModel) -> NamedParameters:
    """The model's parameters by name."""
    return [(info.name, info.parameter) for info in parameter_infos(model)]


def optimizer_tensors(named: NamedParameters, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments and counters, named by parameter, so that they do not depend on the order of groups."""
    tensors = {}
    for name, parameter in named:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}/{key}"] = value
    return tensors


def load_optimizer_tensors(
    named: NamedParameters, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned. Learning rates and groups stay those of `optimizer`."""
    names = {id(parameter): name for name, parameter in named}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for index, parameter in enumerate(parameters):
        state = with_prefix(tensors, f"{_OPTIMIZER}{names[id(parameter)]}/")
        if state:
            states[index] = {key: _with_strides_of(parameter, value) for key, value in state.items()}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _with_strides_of(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the memory layout of the parameter: a fused optimiser reads both from front to back."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def checksum(named: NamedParameters) -> int:
    """A checksum of the trainable weights' bytes; equal weights have equal checksums, whatever device they are on."""
    total = 0
    for number, (_, parameter) in enumerate(named, start=1):
        if parameter.requires_grad:
            total += number * int(parameter.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))
    return total


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
