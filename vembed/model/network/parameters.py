"""Parameters for the optimiser, each with its part of the model, whether it is pretrained, and its layer's number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch.nn import Parameter

from vembed.model.adapters.layers import is_adapter

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel

Part = Literal["text", "vision", "heads", "scale"]
FUSION_PREFIX = "fusion."  # how the names of a fusion's parameters begin

# How architectures name their blocks; of a network of stages (ConvNeXt, Swin) the stages count.
_BLOCK = re.compile(r"(?:^|\.)(?:(?:layers?|blocks?|stages|h)\.(\d+)\.|layer(\d+)\.)")
# Position parameters beside the blocks that each of them reads, wherever they are defined (MPNet, DeBERTa).
_READ_BY_ALL = re.compile(r"(?:^|\.)(?:relative_attention_bias|rel_embeddings)\.")


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter. `layer` counts from 0 (embeddings, and positions that every block reads) over the blocks
    1..num_layers; what follows the last block belongs to it. None for parameters outside a pretrained tower."""

    name: str
    parameter: Parameter
    part: Part
    pretrained: bool
    layer: int | None = None
    num_layers: int | None = None


def parameter_infos(model: "BaseEmbeddingModel") -> list[ParameterInfo]:
    """Every parameter of a model once, in order of definition."""
    parameters = dict(model.named_parameters())
    layers: dict[str, tuple[int, int]] = {}
    for tower in model.spec.towers:
        names = [name for name in parameters if model.part_of(name) == tower and not is_adapter(name)]
        numbers, num_layers = layer_numbers(names)
        layers |= {name: (number, num_layers) for name, number in zip(names, numbers, strict=True)}
    return [
        ParameterInfo(
            name, parameter, model.part_of(name), _is_pretrained(model, name), *layers.get(name, (None, None))
        )
        for name, parameter in parameters.items()
    ]


def layer_numbers(names: Sequence[str]) -> tuple[list[int], int]:
    """The layer of each of a tower's parameters, named in order of definition, and the number of layers.

    >>> layer_numbers(["embed.weight", "layer.0.q.weight", "layer.1.q.weight", "norm.weight"])
    ([0, 1, 2, 2], 2)
    >>> layer_numbers(["embed.weight", "block.0.layer.0.q.weight", "block.0.layer.1.wi.weight"])
    ([0, 1, 1], 1)
    """
    blocks = [_block(name) for name in names]
    order = {block: index + 1 for index, block in enumerate(sorted({block for block in blocks if block is not None}))}
    layers, seen = [], 0
    for name, block in zip(names, blocks, strict=True):
        if block is None and _READ_BY_ALL.search(name):
            layers.append(0)
            continue
        seen = order[block] if block is not None else (len(order) if seen else 0)
        layers.append(seen)
    return layers, len(order)


def block_paths(names: Sequence[str]) -> list[str]:
    """The blocks that hold a network's parameters, by their paths within it, first to last.

    >>> block_paths(["embed.weight", "encoder.layer.0.q.weight", "encoder.layer.1.q.weight", "norm.weight"])
    ['encoder.layer.0', 'encoder.layer.1']
    """
    matches = [match for name in names if (match := _BLOCK.search(name)) is not None]
    numbers = {match.string[: match.end() - 1]: _number(match) for match in matches}
    return sorted(numbers, key=numbers.__getitem__)


def _is_pretrained(model: "BaseEmbeddingModel", name: str) -> bool:
    part = model.part_of(name)
    if part == "scale":
        return model.has_own_scale
    if name.startswith(FUSION_PREFIX):
        return not model.has_new_fusion
    return not model.has_new_heads if part == "heads" else not is_adapter(name)


def _block(name: str) -> int | None:
    match = _BLOCK.search(name)
    return _number(match) if match else None


def _number(match: re.Match[str]) -> int:
    return int(match.group(1) or match.group(2))
