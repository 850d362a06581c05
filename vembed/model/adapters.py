"""LoRA adapters on the towers' layers."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from vembed.errors import ModelError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.settings import ModelSettings
from vembed.registry import nearest_names

_ADAPTABLE = (nn.Linear, nn.Conv2d)


def add_adapters(model: BaseEmbeddingModel, settings: ModelSettings, seed: int) -> None:
    """Put an adapter beside every linear layer of the towers that learn, or beside the layers that are named.

    Pretrained weights of those towers stop learning, except projections outside the networks (CLIP's), which are as
    small as a head and go on learning at their tower's rate. Raises ModelError for names that fit no layer.
    """
    layers = dict(_learning_layers(model))
    chosen = _choose(model, layers, settings.lora_target_modules)
    projections = [layer for name, layer in layers.items() if _is_projection(name) and name not in chosen]
    for _, backbone in _roots(model):
        backbone.requires_grad_(False)
    for prefix, backbone in _roots(model):
        names = [name.removeprefix(prefix) for name in chosen if name.startswith(prefix)]
        if names:
            _inject(backbone, names, settings, seed)
    for projection in projections:
        projection.requires_grad_(True)


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


def _choose(model: BaseEmbeddingModel, layers: dict[str, nn.Module], targets: Sequence[str] | None) -> list[str]:
    if targets is not None:
        return _named(layers, targets)
    chosen = [name for name, layer in layers.items() if isinstance(layer, nn.Linear) and not _is_projection(name)]
    for tower, network in model.towers().items():
        prefix = _module_name(model, network) + "."
        if tower not in model.frozen and not any(name.startswith(prefix) for name in chosen):
            raise ModelError(
                f"use_lora: the {tower} tower ({type(network).__name__}) has no linear layers to put adapters on; "
                f"name others with lora_target_modules, freeze: [{tower}], or tune without adapters"
            )
    return chosen


def _named(layers: dict[str, nn.Module], targets: Sequence[str]) -> list[str]:
    matches = {target: [name for name in layers if _fits(name, target)] for target in targets}
    unknown = [target for target, names in matches.items() if not names]
    if unknown:
        endings = sorted({end for name in layers for end in (_ending(name, 1), _ending(name, 2))})
        near = [name for target in unknown for name in nearest_names(target, endings, limit=3)] or endings[:8]
        raise ModelError(
            f"lora_target_modules: no layer that learns is called {', '.join(map(repr, unknown))}; "
            f"near or possible are: {', '.join(near)}"
        )
    return [name for name in layers if any(name in names for names in matches.values())]


def _ending(name: str, num_parts: int) -> str:
    return ".".join(name.split(".")[-num_parts:])


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
