"""The tensors in a folder's safetensors, by their headers, and what a folder may not be: larger than its weights say.

A config.json of a few bytes can describe a network of any size; transformers would build it before it misses weights.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from vembed.errors import CheckpointError, ModelError, VembedError
from vembed.model.folder.find import Json, read_table
from vembed.utils.untrusted import library_errors

_LENGTH_SIZE = 8
_MAX_HEADER = 100_000_000  # safetensors' own limit
_INDEX = "model.safetensors.index.json"
_LAYER_WORDS = ("layer", "depth", "block")
_COUNTS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
_MAX_LAYERS = 1000  # a number up to which it is cheaper to let transformers find out


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file: its dtype, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_entries(path: Path, error_type: type[VembedError] = CheckpointError) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name. Raises an `error_type` for a header that cannot be one."""
    with (
        library_errors(error_type, f"{path} is damaged: its header cannot be read", or_too_large=True),
        path.open("rb") as file,
    ):
        header, first = _header(file)
        return {
            name: TensorEntry(
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                *(first + int(offset) for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }


def num_values(folder: Path) -> tuple[int, int]:
    """The number of tensors in a folder's safetensors, and of the values in them. Raises ModelError."""
    files = sorted(folder.glob("*.safetensors"))
    entries = [entry for path in files for entry in read_entries(path, ModelError).values()]
    return len(entries), sum(math.prod(entry.shape) for entry in entries)


def check_index(folder: Path) -> None:
    """Raise ModelError for a list of shards that names what is not there, not a safetensors file, or elsewhere."""
    index = read_table(folder / _INDEX)
    if index is None or (folder / "model.safetensors").is_file():
        return
    shards = index.get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise ModelError(f"{folder / _INDEX} has no weight_map, which says where each tensor is")
    for shard in sorted({str(name) for name in shards.values()}):
        if PurePath(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{folder / _INDEX} names {shard!r}; a shard is a .safetensors file beside it")
        if not (folder / shard).is_file():
            raise ModelError(f"{folder / _INDEX} names {shard}, which is not there; copy or download it too")


def check_layers(folder: Path, config: Json) -> None:
    """Raise ModelError for a config.json with more layers than there are tensors, or with none."""
    limit = max(_MAX_LAYERS, num_values(folder)[0])
    for name, value in _numbers(config, ""):
        if name in _COUNTS and value < 1:
            raise ModelError(f"{folder / 'config.json'} says {name}: {value}; expected at least 1")
        if value > limit and any(word in name for word in _LAYER_WORDS):
            raise ModelError(
                f"{folder / 'config.json'} says {name}: {value:,}, and there are {num_values(folder)[0]:,} tensors of"
                " weights; they are of different models"
            )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:  # Any: JSON
    """The whole numbers in a config, with the names of their keys."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, str(key))
    elif isinstance(value, list):
        for entry in value:
            yield from _numbers(entry, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:  # Any: JSON
    """The header, and where the bytes after it begin."""
    (length,) = struct.unpack("<Q", file.read(_LENGTH_SIZE))
    if length > _MAX_HEADER:
        raise ValueError(f"it would have {length:,} bytes")
    header: dict[str, Any] = json.loads(file.read(length))
    return header, _LENGTH_SIZE + length
