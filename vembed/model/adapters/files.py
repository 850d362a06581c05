"""Adapters on the disk in peft's own format, which plain peft reads onto the plain base.

    adapter_config.json          kind and rank, the layers, the base's name
    adapter_model.safetensors    the adapters' tensors, and under `modules_to_save` layers that learned whole

Loading is strict: every tensor of the file has its place, every adapter its tensor, and the adapter does something.
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
from vembed.model.adapters.layers import ADAPTER, adapted_layers, is_adapter
from vembed.model.folder.find import ADAPTER_CONFIG, SPEC_FILE, read_adapter_config

Network = Any  # peft and transformers are untyped here

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LAST = ".lora_B."  # zero at the start
_MAGNITUDE = ".lora_magnitude_vector"
_NAMED = 4


def write_adapters(folder: Path, backbone: Network, whole: Collection[str], *, base: str, revision: str | None) -> None:
    """Write the adapters of a network, and the layers named in `whole` with all they hold. `base`: where its plain
    weights are found."""
    folder.mkdir(parents=True, exist_ok=True)
    config = backbone.peft_config[ADAPTER].to_dict()
    config |= {
        "base_model_name_or_path": base,
        "revision": revision,
        "target_modules": [name for name, _ in adapted_layers(backbone)],
        "modules_to_save": sorted(whole) or None,
        "inference_mode": True,
    }
    content = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    (folder / ADAPTER_CONFIG).write_text(content + "\n", encoding="utf-8")
    state = {**_adapter_tensors(backbone), **_whole_tensors(backbone, whole)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapters(folder: Path, backbone: Network, *, dropout: float = 0.0) -> None:
    """Put the adapters of a folder onto a plain network. Raises CheckpointError for one of another model or kind."""
    import peft  # noqa: PLC0415 (slow, and only adapters need it)

    content = read_adapter_config(folder)
    if content is None:
        raise CheckpointError(f"{folder} holds no {ADAPTER_CONFIG}")
    if content.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} holds a {content.get('peft_type')} adapter; LoRA, DoRA and rsLoRA are supported"
        )
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        config.lora_dropout, config.inference_mode, config.modules_to_save = dropout, False, None
        inject(backbone, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the adapter in {folder} does not fit this model: {_words(error)}") from error
    config.modules_to_save = content.get("modules_to_save")
    load_adapters(folder, backbone)
    _refuse_idle(folder)


def load_adapters(folder: Path, backbone: Network) -> None:
    """Give a network's adapters the values of a folder. Raises CheckpointError that says what does not fit."""
    path = folder / WEIGHTS_FILE
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or broken: {error}") from error
    whole = (read_adapter_config(folder) or {}).get("modules_to_save") or ()
    own = {**_adapter_tensors(backbone), **_whole_tensors(backbone, whole)}
    _refuse_misfits(path, saved, own)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def inject(backbone: Network, config: Any) -> None:  # Any: peft is untyped here
    """Put new adapters onto a network, in float32 whatever its own dtype: what learns is exact."""
    import peft  # noqa: PLC0415 (slow, and only adapters need it)

    peft.inject_adapter_in_model(config, backbone)
    for name, parameter in backbone.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def _adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {_file_name(name): tensor for name, tensor in network.state_dict().items() if is_adapter(name)}


def _whole_tensors(network: nn.Module, whole: Collection[str]) -> dict[str, Tensor]:
    """Everything below the layers that learned whole."""
    state = network.state_dict()
    return {
        _PREFIX + name: tensor for name, tensor in state.items() if name.startswith(tuple(f"{one}." for one in whole))
    }


def _file_name(name: str) -> str:
    """A tensor's name in peft's files.

    >>> _file_name("layer.0.query.lora_A.default.weight")
    'base_model.model.layer.0.query.lora_A.weight'
    >>> _file_name("layer.0.query.lora_magnitude_vector.default.weight")
    'base_model.model.layer.0.query.lora_magnitude_vector'
    """
    plain = name.replace(f".{ADAPTER}.", ".")
    return _PREFIX + (plain.removesuffix(".weight") if _MAGNITUDE in plain else plain)


def _refuse_misfits(path: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    both = own.keys() & saved.keys()
    lists = {
        "lacks": sorted(own.keys() - saved.keys()),
        "has no place here for": sorted(saved.keys() - own.keys()),
        "has in another shape": sorted(name for name in both if own[name].shape != saved[name].shape),
    }
    problems = [f"{what} {_some(names)}" for what, names in lists.items() if names]
    if problems:
        raise CheckpointError(f"{path} does not fit this model: it {'; it '.join(problems)}")


def _refuse_idle(folder: Path) -> None:
    """Adapters that change nothing were never trained, or lost what they learned.

    Those of a composed model are judged together: of texts alone, its image tower learns nothing.
    """
    is_tower = (folder.parent / SPEC_FILE).is_file()
    towers = folder.parent.glob(f"*/{WEIGHTS_FILE}") if is_tower else [folder / WEIGHTS_FILE]
    if all(_is_idle(path) for path in towers):
        last = [name for name in load_file(folder / WEIGHTS_FILE) if _LAST in name]
        raise CheckpointError(f"the adapter in {folder / WEIGHTS_FILE} changes nothing: {_some(last)} are zero")


def _is_idle(path: Path) -> bool:
    """Whether the adapters of a file change nothing. A broken file is told of where it is loaded."""
    try:
        with safe_open(path, "pt") as weights:
            last = [name for name in weights.keys() if _LAST in name]  # noqa: SIM118 (it is no mapping)
            return bool(last) and not any(weights.get_tensor(name).any() for name in last)
    except (OSError, SafetensorError):
        return False


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _some(names: Collection[str]) -> str:
    shown = ", ".join(name.removeprefix(_PREFIX) for name in list(names)[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def whole_layers(backbone: nn.Module, *, with_statistics: bool) -> Iterator[str]:
    """Names of the layers that learn whole beside the adapters, and of batch norms whose statistics change."""
    known = getattr(backbone, "peft_config", {})
    before = known[ADAPTER].modules_to_save if ADAPTER in known else None
    for name, module in backbone.named_modules():
        own = [parameter for key, parameter in module.named_parameters(recurse=False) if not is_adapter(f".{key}")]
        changes = with_statistics and is_batch_norm(module)
        inside_adapter = is_adapter(f".{name}.")
        if not inside_adapter and (changes or name in (before or ()) or any(one.requires_grad for one in own)):
            yield name
