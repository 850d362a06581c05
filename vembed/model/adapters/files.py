"""Adapters on the disk in peft's own format, which plain peft reads onto the plain base.

    adapter_config.json          kind and rank, the layers, the base's name
    adapter_model.safetensors    the adapters' tensors, and those of `modules_to_save`: layers that were trained in full

Loading is strict: each tensor of the file has a parameter of its shape, each adapter its tensors, and not all are zero.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vembed.errors import CheckpointError
from vembed.grad_cache.batch_norm import is_batch_norm
from vembed.model.adapters.layers import ADAPTER, is_adapter, layers_with_adapters
from vembed.model.folder.find import ADAPTER_CONFIG, SPEC_FILE, read_adapter_config
from vembed.utils.untrusted import library_errors

Network = Any  # peft and transformers are untyped here

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA_B = ".lora_B."  # zero before training
_MAGNITUDE = ".lora_magnitude_vector"
_MAX_NAMES = 4  # in a message
_MAX_RANK = 65536


def write_adapters(
    folder: Path, backbone: Network, to_save: Collection[str], *, base: str, revision: str | None
) -> None:
    """Write a network's adapters, and the full weights of its `modules_to_save`, which `to_save` names.

    base: name or folder of the model with its other weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = backbone.peft_config[ADAPTER].to_dict()
    config |= {
        "base_model_name_or_path": base,
        "revision": revision,
        "target_modules": [name for name, _ in layers_with_adapters(backbone)],
        "modules_to_save": sorted(to_save) or None,
        "inference_mode": True,
    }
    content = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    (folder / ADAPTER_CONFIG).write_text(content + "\n", encoding="utf-8")
    state = {**_adapter_tensors(backbone), **_saved_module_tensors(backbone, to_save)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapters(folder: Path, backbone: Network, *, dropout: float = 0.0) -> None:
    """Add the adapters of a folder to a network without any. Raises CheckpointError for those that do not fit it."""
    import peft  # noqa: PLC0415 (slow, and only adapters need it)

    content = read_adapter_config(folder)
    if content is None:
        raise CheckpointError(f"{folder} holds no {ADAPTER_CONFIG}")
    if content.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} holds a {content.get('peft_type')} adapter; LoRA, DoRA and rsLoRA are supported"
        )
    _refuse_sizes(folder / ADAPTER_CONFIG, content)
    with library_errors(CheckpointError, f"the adapter in {folder} does not fit this model"):
        config = peft.LoraConfig.from_pretrained(str(folder))
        config.lora_dropout, config.inference_mode, config.modules_to_save = dropout, False, None
        inject(backbone, config)
    config.modules_to_save = content.get("modules_to_save")
    load_adapters(folder, backbone)
    _refuse_zero_adapters(folder)


def load_adapters(folder: Path, backbone: Network) -> None:
    """Load a folder's adapters into a network that has such. Raises CheckpointError that lists what does not fit."""
    path = folder / WEIGHTS_FILE
    with library_errors(CheckpointError, f"{path} is missing or broken"):
        saved = load_file(path)
    to_save = (read_adapter_config(folder) or {}).get("modules_to_save") or ()
    expected = {**_adapter_tensors(backbone), **_saved_module_tensors(backbone, to_save)}
    _refuse_mismatch(path, saved, expected)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(saved[name])


def inject(backbone: Network, config: Any) -> None:  # Any: peft is untyped here
    """Add new adapters to a network, in float32 whatever its dtype, as all trainable parameters are."""
    import peft  # noqa: PLC0415 (slow, and only adapters need it)

    peft.inject_adapter_in_model(config, backbone)
    for name, parameter in backbone.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def _adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {_file_name(name): tensor for name, tensor in network.state_dict().items() if is_adapter(name)}


def _saved_module_tensors(network: nn.Module, to_save: Collection[str]) -> dict[str, Tensor]:
    """Parameters and buffers of `modules_to_save`, by their names in peft's files."""
    prefixes = tuple(f"{name}." for name in to_save)
    return {_PREFIX + name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefixes)}


def _file_name(name: str) -> str:
    """A tensor's name in peft's files.

    >>> _file_name("layer.0.query.lora_A.default.weight")
    'base_model.model.layer.0.query.lora_A.weight'
    >>> _file_name("layer.0.query.lora_magnitude_vector.default.weight")
    'base_model.model.layer.0.query.lora_magnitude_vector'
    """
    plain = name.replace(f".{ADAPTER}.", ".")
    return _PREFIX + (plain.removesuffix(".weight") if _MAGNITUDE in plain else plain)


def _refuse_mismatch(path: Path, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    both = expected.keys() & saved.keys()
    lists = {
        "lacks": sorted(expected.keys() - saved.keys()),
        "has no place here for": sorted(saved.keys() - expected.keys()),
        "has in another shape": sorted(name for name in both if expected[name].shape != saved[name].shape),
    }
    problems = [f"{what} {_first_names(names)}" for what, names in lists.items() if names]
    if problems:
        raise CheckpointError(f"{path} does not fit this model: it {'; it '.join(problems)}")


def _refuse_zero_adapters(folder: Path) -> None:
    """Raise CheckpointError for adapters whose B matrices are all zero: never trained, or their weights were lost.

    The towers of a composed model count together: trained on texts alone, its image tower's adapters stay zero.
    """
    is_tower = (folder.parent / SPEC_FILE).is_file()
    towers = folder.parent.glob(f"*/{WEIGHTS_FILE}") if is_tower else [folder / WEIGHTS_FILE]
    if all(_is_zero(path) for path in towers):
        names = [name for name in load_file(folder / WEIGHTS_FILE) if _LORA_B in name]
        raise CheckpointError(f"the adapter in {folder / WEIGHTS_FILE} changes nothing: {_first_names(names)} are zero")


def _is_zero(path: Path) -> bool:
    """True if all B matrices of a file are zero. False for a broken file, which raises where it is loaded."""
    try:
        with safe_open(path, "pt") as weights:
            names = [name for name in weights.keys() if _LORA_B in name]  # noqa: SIM118 (it is no mapping)
            return bool(names) and not any(weights.get_tensor(name).any() for name in names)
    except (OSError, SafetensorError):
        return False


def _refuse_sizes(path: Path, content: Mapping[str, Any]) -> None:  # Any: JSON
    """Raise CheckpointError for ranks that no adapter has, for which memory would be taken, and code of another's."""
    if content.get("megatron_config"):
        raise CheckpointError(f"{path} sets megatron_config, by which peft imports another package; take it out")
    pattern = content.get("rank_pattern") or {}
    ranks = {"r": content.get("r", 8), **(pattern if isinstance(pattern, dict) else {"rank_pattern": None})}
    for name, rank in ranks.items():
        if not isinstance(rank, int) or not 1 <= rank <= _MAX_RANK:
            raise CheckpointError(f"{path}: {name}: expected a rank from 1 to {_MAX_RANK}; got {rank!r}")
    names = content.get("modules_to_save")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{path}: modules_to_save: expected a list of names; got {names!r}")


def _first_names(names: Collection[str]) -> str:
    shown = ", ".join(name.removeprefix(_PREFIX) for name in list(names)[:_MAX_NAMES])
    return f"{shown} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else shown


def modules_to_save(backbone: nn.Module, *, with_statistics: bool) -> Iterator[str]:
    """peft's `modules_to_save`: names of layers trained in full beside adapters, and of batch norms that change.

    with_statistics: batch norms update their running statistics in this training.
    """
    known = getattr(backbone, "peft_config", {})
    before = known[ADAPTER].modules_to_save if ADAPTER in known else None
    for name, module in backbone.named_modules():
        own = [parameter for key, parameter in module.named_parameters(recurse=False) if not is_adapter(f".{key}")]
        changes = with_statistics and is_batch_norm(module)
        inside_adapter = is_adapter(f".{name}.")
        if not inside_adapter and (changes or name in (before or ()) or any(one.requires_grad for one in own)):
            yield name
