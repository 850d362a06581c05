"""The tensors that a checkpoint needs beside the model's files, by name, and back again."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vembed.errors import CheckpointError
from vembed.model.parameters import ParameterInfo

_OPTIMIZER = "optimizer/"
_PARAMETERS = "parameters/"
_BUFFERS = "buffers/"


def optimizer_tensors(infos: Sequence[ParameterInfo], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments and counters, named by parameter, so that they do not depend on the order of groups."""
    tensors = {}
    for info in infos:
        for key, value in optimizer.state.get(info.parameter, {}).items():
            tensors[f"{_OPTIMIZER}{info.name}/{key}"] = value
    return tensors


def load_optimizer_tensors(
    infos: Sequence[ParameterInfo], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave. Rates and groups stay those of `optimizer`."""
    names = {id(info.parameter): info.name for info in infos}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for index, parameter in enumerate(parameters):
        state = with_prefix(tensors, f"{_OPTIMIZER}{names[id(parameter)]}/")
        if state:
            states[index] = {key: _laid_out_like(parameter, value) for key, value in state.items()}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's order of memory: a fused optimiser reads both from front to back."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def parameter_tensors(infos: Sequence[ParameterInfo]) -> dict[str, Tensor]:
    """The weights that learn."""
    return {f"{_PARAMETERS}{info.name}": info.parameter.detach() for info in infos if info.parameter.requires_grad}


@torch.no_grad()
def load_parameter_tensors(infos: Sequence[ParameterInfo], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `parameter_tensors` gave. Raises CheckpointError when the model has other parameters."""
    values = with_prefix(tensors, _PARAMETERS)
    learning = {info.name: info.parameter for info in infos if info.parameter.requires_grad}
    if values.keys() != learning.keys():
        names = sorted(values.keys() ^ learning.keys())
        raise CheckpointError(f"the checkpoint's parameters are not the model's; they differ in {', '.join(names[:4])}")
    for name, parameter in learning.items():
        parameter.copy_(values[name])


def buffer_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """What a model keeps beside its parameters, such as batch norm's running statistics."""
    state = model.state_dict()
    return {f"{_BUFFERS}{name}": value for name, value in model.named_buffers() if name in state}


@torch.no_grad()
def load_buffer_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `buffer_tensors` gave."""
    buffers = dict(model.named_buffers())
    for name, value in with_prefix(tensors, _BUFFERS).items():
        buffers[name].copy_(value)


def checksum(infos: Sequence[ParameterInfo]) -> int:
    """A sum over the bits of the weights that learn; equal weights have equal sums, whatever device they are on."""
    total = 0
    for number, info in enumerate(infos, start=1):
        if info.parameter.requires_grad:
            total += number * int(info.parameter.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))
    return total


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
