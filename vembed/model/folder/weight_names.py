"""Save weights under the names of another folder of the same network, with its language head.

A network is often published in a class with a head: `model.layers.0...` and `lm_head.weight` instead of `layers.0...`.
Tools that open the one may not open the other.
"""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"


def rename_weights_like(base: Path, folder: Path) -> None:
    """Rename the weights in `folder` as they are named in `base`, and copy those that only `base` has.

    Does nothing if the names agree, or differ by more than a common prefix.
    """
    theirs, own = _files_by_name(base), _files_by_name(folder)
    prefix = _prefix(set(theirs), set(own))
    if not prefix:
        return
    named = {prefix + name: file for name, file in own.items()}
    heads = {name: _tensor(theirs[name], name) for name in sorted(theirs.keys() - named.keys())}
    files = sorted(set(named.values()))
    dtype = next(iter(load_file(files[0]).values())).dtype
    for file in files:
        state = {prefix + name: tensor for name, tensor in load_file(file).items()}
        if file == files[-1]:
            state |= {name: head.to(dtype) if head.is_floating_point() else head for name, head in heads.items()}
        save_file(state, file, metadata={"format": "pt"})
    _write_index(folder, {**named, **dict.fromkeys(heads, files[-1])})
    _copy_architectures(base, folder)


def _prefix(theirs: set[str], own: set[str]) -> str:
    """The prefix by which names of `theirs` differ from all of `own`; "" if there is none.

    >>> _prefix({"model.a.b", "model.c", "head.c"}, {"a.b", "c"})
    'model.'
    >>> _prefix({"a.b", "c"}, {"a.b", "c"})
    ''
    """
    some = min(own, default="")
    candidates = sorted({name.removesuffix(some) for name in theirs if name.endswith(f".{some}")})
    return next((prefix for prefix in candidates if {prefix + name for name in own} <= theirs), "")


def _files_by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _write_index(folder: Path, files: dict[str, Path]) -> None:
    path = folder / _INDEX
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["weight_map"] = {name: file.name for name, file in sorted(files.items())}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _copy_architectures(base: Path, folder: Path) -> None:
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    config["architectures"] = json.loads((base / _CONFIG).read_text(encoding="utf-8")).get("architectures")
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
