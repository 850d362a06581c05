"""What the optimiser needs to know of a parameter: which part it belongs to, whether it is new, how deep it lies."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.nn import Parameter

Part = Literal["text", "vision", "heads", "scale"]

# The names under which architectures list their blocks; a network of stages counts its stages.
_BLOCK = re.compile(r"(?:^|\.)(?:(?:layers?|blocks?|stages|h)\.(\d+)\.|layer(\d+)\.)")
# What stands beside the blocks and is read by each of them, wherever it is defined (MPNet, DeBERTa).
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


def _block(name: str) -> int | None:
    match = _BLOCK.search(name)
    return _number(match) if match else None


def _number(match: re.Match[str]) -> int:
    return int(match.group(1) or match.group(2))
