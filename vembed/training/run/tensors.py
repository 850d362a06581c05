"""The optimiser's tensors by parameter name, for a checkpoint, and back; and checksums of tensors."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from vembed.errors import CheckpointError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.learning.lora import has_adapters
from vembed.model.network.parameters import parameter_infos

NamedParameters = Sequence[tuple[str, Parameter]]

_OPTIMIZER = "optimizer/"
_BLOCK_WORDS = 4096
_WORD_BYTES = 8


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
    """Restore what `optimizer_tensors` returned. Learning rates and groups stay those of `optimizer`.

    Raises CheckpointError for tensors of another shape than their parameter.
    """
    names = {id(parameter): name for name, parameter in named}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for index, parameter in enumerate(parameters):
        name = names[id(parameter)]
        state = with_prefix(tensors, f"{_OPTIMIZER}{name}/")
        if state:
            states[index] = {key: _as_state_of(parameter, value, f"{name}/{key}") for key, value in state.items()}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _as_state_of(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    """A counter; or a moment, in the memory layout of its parameter: a fused optimiser reads both front to back."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter).copy_(value)
    if value.numel() != 1:
        shapes = f"{list(value.shape)}, and its parameter {list(parameter.shape)}"
        raise CheckpointError(f"{_OPTIMIZER}{name} has shape {shapes}")
    return value


def saved_tensors(model: BaseEmbeddingModel, classes: Tensor | None = None) -> dict[str, Tensor]:
    """All tensors that a checkpoint's model holds, by name: weights, buffers, the weights of classes.

    With adapters without the frozen weights beside them, which are the base model's and not in the checkpoint.
    """
    tensors = dict(model.state_dict())
    if has_adapters(model):
        towers = {id(parameter) for tower in model.backbones().values() for parameter in tower.parameters()}
        frozen = {
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad and id(parameter) in towers
        }
        tensors = {name: tensor for name, tensor in tensors.items() if name not in frozen}
    return tensors if classes is None else {**tensors, "classes/weight": classes}


def tensor_checksum(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors: names, dtypes, shapes and every bit; the same on any device.

    It takes as long as reading their memory does, for it is made of sums, which devices do at that speed:

        words of 8 bytes, as a table of rows of 4096 -> the sum of each row, the sum of each column, mod 2^64

    A flipped bit changes two sums; so do two words that change places, where they are in one row or one column too.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _sums(tensor):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sums(tensor: Tensor) -> tuple[Tensor, ...]:
    """Int64 sums over rows and over columns of the table, the words that do not fill a row, the bytes of no word."""
    plain = tensor.contiguous()
    if plain.storage_offset() * plain.element_size() % _WORD_BYTES:
        plain = plain.clone()  # a word must begin at a multiple of its size
    everything = plain.reshape(-1).view(torch.uint8)
    end = len(everything) // _WORD_BYTES * _WORD_BYTES
    words = everything[:end].view(torch.int64)
    in_table = len(words) // _BLOCK_WORDS * _BLOCK_WORDS
    table = words[:in_table].view(-1, _BLOCK_WORDS)
    return table.sum(dim=1), table.sum(dim=0), words[in_table:], everything[end:]


def byte_sum(named: NamedParameters) -> int:
    """The checksum of checkpoints of format 1: of the bytes of trainable weights, in any order within a tensor."""
    total = 0
    for number, (_, parameter) in enumerate(named, start=1):
        if parameter.requires_grad:
            total += number * int(parameter.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))
    return total


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
