"""LoRA adapters on the towers' layers."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from vembed.errors import ModelError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.settings import ModelSettings
from vembed.registry import nearest_names

_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)


def add_adapters(model: BaseEmbeddingModel, settings: ModelSettings, seed: int) -> None:
    """Put an adapter beside every linear layer of the towers that learn, or beside the layers that are named.

    Pretrained weights of those towers stop learning, except projections outside the networks (CLIP's), which are as
    small as a head and go on learning at their tower's rate. Raises ModelError for names that fit no layer.
    """
    layers = dict(_learning_layers(model))
    chosen = _choose(layers, settings.lora_target_modules)
    for prefix, backbone in _roots(model):
        names = [name.removeprefix(prefix) for name in chosen if name.startswith(prefix)]
        if names:
            _inject(backbone, names, settings, seed)
    adapted = tuple(name + "." for name in chosen)
    towers = tuple(_module_name(model, tower) + "." for tower in model.towers().values())
    for name, parameter in model.named_parameters():
        outside = not name.startswith(towers) and not name.startswith(adapted)
        if outside and any(name.startswith(layer + ".") for layer in layers):
            parameter.requires_grad_(True)


def _learning_layers(model: BaseEmbeddingModel) -> Iterator[tuple[str, nn.Module]]:
    """Layers of the backbones whose weights learn, but for those that nn.MultiheadAttention reads without calling."""
    inside_attention = tuple(
        name + "." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)
    )
    for name, module in model.named_modules():
        in_backbone = any(name.startswith(prefix) for prefix, _ in _roots(model))
        if not in_backbone or not isinstance(module, _ADAPTABLE) or name.startswith(inside_attention or ("\0",)):
            continue
        if module.weight.requires_grad:
            yield name, module


def _choose(layers: dict[str, nn.Module], targets: Sequence[str] | None) -> list[str]:
    if targets is None:
        chosen = [name for name, layer in layers.items() if isinstance(layer, nn.Linear) and not _is_projection(name)]
        if not chosen:
            raise ModelError(
                "use_lora: the towers that learn have no linear layers; name others with lora_target_modules, such as "
                f"{', '.join(list(layers)[:3])}, or tune without adapters"
            )
        return chosen
    matches = {target: [name for name in layers if _fits(name, target)] for target in targets}
    unknown = [target for target, names in matches.items() if not names]
    if unknown:
        endings = sorted(
            {part for name in layers for part in (name.rsplit(".", 1)[-1], ".".join(name.split(".")[-2:]))}
        )
        near = nearest_names(unknown[0], endings, limit=5) or endings[:8]
        raise ModelError(
            f"lora_target_modules: no layer that learns is called {', '.join(map(repr, unknown))}; "
            f"near or possible are: {', '.join(near)}"
        )
    return [name for name in layers if any(name in names for names in matches.values())]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _is_projection(name: str) -> bool:
    """Whether the layer is a direct child of a dual encoder ("backbone.text_projection")."""
    return name.startswith("backbone.") and name.count(".") == 1


def _inject(backbone: nn.Module, names: list[str], settings: ModelSettings, seed: int) -> None:
    import peft  # noqa: PLC0415 (slow, and only runs with adapters need it)

    config = peft.LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=names,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, backbone)


def _roots(model: BaseEmbeddingModel) -> list[tuple[str, nn.Module]]:
    return [(_module_name(model, backbone) + ".", backbone) for backbone in model.backbones().values()]


def _module_name(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]
