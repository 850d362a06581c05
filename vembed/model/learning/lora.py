"""LoRA, DoRA and rsLoRA adapters on the towers' layers."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from vembed.errors import ModelError
from vembed.model.adapters.files import inject, modules_to_save
from vembed.model.adapters.layers import ADAPTER, is_adapter, layers_with_adapters
from vembed.model.backbones.pretrained import Backbone
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings, Tower
from vembed.registry import nearest_names

_LORA_LAYERS = (nn.Linear, nn.Conv2d)
DEFAULT_RANK = 16
DEFAULT_ALPHA = 32.0


def add_adapters(model: BaseEmbeddingModel, settings: ModelSettings, seed: int) -> None:
    """Add an adapter to each layer of `lora_target_modules`, or to those that the model's class names by default.

    These are usually all linear layers of the trainable towers.

    The backbones' weights are frozen, except projections outside the towers (CLIP's), which are as small as a head and
    stay trainable at their tower's rate. Raises ModelError for names that fit no layer.
    """
    layers = dict(_trainable_layers(model))
    chosen = _target_layers(model, layers, settings.lora_target_modules)
    projections = [layer for name, layer in _projections(model, layers) if name not in chosen]
    for _, backbone in _backbone_prefixes(model):
        backbone.requires_grad_(False)
    for prefix, backbone in _backbone_prefixes(model):
        names = [name.removeprefix(prefix) for name in chosen if name.startswith(prefix)]
        if names:
            _inject(backbone, names, settings, seed)
    for projection in projections:
        projection.requires_grad_(True)


def continue_adapters(model: BaseEmbeddingModel, settings: ModelSettings) -> None:
    """Train the adapters that a model was loaded with further, and the layers that were trained in full beside them.

    Raises ModelError for settings of other adapters than these.
    """
    projections = [layer for _, layer in _projections(model, dict(_trainable_layers(model)))]
    for backbone in model.backbones().values():
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(is_adapter(name))
        for name in modules_to_save(backbone, with_statistics=False):
            backbone.get_submodule(name).requires_grad_(True)
    for projection in projections:
        projection.requires_grad_(True)
    problems = [
        problem for backbone in model.backbones().values() for problem in _setting_conflicts(backbone, settings)
    ]
    if problems:
        raise ModelError("\n".join(dict.fromkeys(problems)))


def freeze_untrained_towers(model: BaseEmbeddingModel) -> None:
    """Freeze the towers without trainable parameters, as most vision towers of vision-language models with adapters."""
    trainable = {info.part for info in parameter_infos(model) if info.parameter.requires_grad}
    keep = trainable | model.freezing.towers | model.freezing.layers.keys()
    model.freeze([tower for tower in model.towers() if tower not in keep])


def has_adapters(model: BaseEmbeddingModel) -> bool:
    """True if any layer of the model has an adapter."""
    return any(True for backbone in model.backbones().values() for _ in layers_with_adapters(backbone))


def _setting_conflicts(backbone: Backbone, settings: ModelSettings) -> Iterator[str]:
    """Messages for settings that differ from those of the adapters that a model already has."""
    names = [name for name, _ in layers_with_adapters(backbone)]
    if not names:
        return
    config = backbone.peft_config[ADAPTER]
    for key, wanted, own in (
        ("lora_r", settings.lora_r, config.r),
        ("lora_alpha", settings.lora_alpha, config.lora_alpha),
        ("use_dora", settings.use_dora or None, config.use_dora),
        ("use_rslora", settings.use_rslora or None, config.use_rslora),
    ):
        if wanted is not None and wanted != own:
            yield f"{key} {wanted}: the adapter that goes on learning has {own}; take {key} out, or set adapter: merge"
    targets = settings.lora_target_modules or ()
    unfit = [name for name in names if targets and not any(_matches(name, target) for target in targets)]
    absent = [target for target in targets if not any(_matches(name, target) for name in names)]
    if unfit or absent:
        yield (
            f"lora_target_modules: the adapter that goes on learning is on {len(names)} layers, such as {names[0]};"
            " take lora_target_modules out, or set adapter: merge"
        )


def _trainable_layers(model: BaseEmbeddingModel) -> Iterator[tuple[str, nn.Module]]:
    """The backbones' layers with trainable weights, by name, except inside nn.MultiheadAttention, which calls none."""
    inside_attention = tuple(
        name + "." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)
    )
    roots = tuple(prefix for prefix, _ in _backbone_prefixes(model))
    frozen = _frozen_names(model)
    for name, module in model.named_modules():
        if not name.startswith(roots) or name.startswith(inside_attention) or not isinstance(module, _LORA_LAYERS):
            continue
        quantised = not module.weight.is_floating_point()  # cannot have requires_grad
        if module.weight.requires_grad or (quantised and not f"{name}.weight".startswith(frozen)):
            yield name, module


def _frozen_names(model: BaseEmbeddingModel) -> tuple[str, ...]:
    """Prefixes of frozen parameters' names: of frozen towers, and each parameter of frozen layers."""
    prefixes = _tower_prefixes(model)
    towers = [prefix for tower, prefix in prefixes.items() if tower in model.freezing.towers]
    return (
        *towers,
        *(prefixes[tower] + name for tower, layers in model.freezing.layers.items() for name, _ in layers.parameters()),
    )


def _target_layers(model: BaseEmbeddingModel, layers: dict[str, nn.Module], targets: Sequence[str] | None) -> list[str]:
    if targets is not None:
        return _layers_named(layers, targets)
    inside = tuple(_tower_prefixes(model).values())
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear) and name.startswith(inside)]
    for tower, prefix in _tower_prefixes(model).items():
        if tower not in model.freezing.towers and not any(name.startswith(prefix) for name in linear):
            raise ModelError(
                f"use_lora: the {tower} tower ({type(model.towers()[tower]).__name__}) has no linear layers to put"
                f" adapters on; name others with lora_target_modules, freeze: [{tower}], or tune without adapters"
            )
    chosen = [name for name in linear if model.takes_adapter(name)]
    if not chosen:
        raise ModelError("use_lora: no layer that learns takes adapters by default; name some with lora_target_modules")
    return chosen


def _layers_named(layers: dict[str, nn.Module], targets: Sequence[str]) -> list[str]:
    matches = {target: [name for name in layers if _matches(name, target)] for target in targets}
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


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _projections(model: BaseEmbeddingModel, layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The backbones' layers outside the towers ("backbone.text_projection") that are trained in full, by name."""
    inside = tuple(_tower_prefixes(model).values())
    for name, layer in layers.items():
        if not name.startswith(inside) and model.learns_whole(name):
            yield name, layer


def _inject(backbone: nn.Module, names: list[str], settings: ModelSettings, seed: int) -> None:
    import peft  # noqa: PLC0415 (slow, and only runs with adapters need it)

    config = peft.LoraConfig(
        r=settings.lora_r or DEFAULT_RANK,
        lora_alpha=settings.lora_alpha or DEFAULT_ALPHA,
        lora_dropout=settings.lora_dropout,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        target_modules=names,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(backbone, config)
    wrong = {name for name, _ in layers_with_adapters(backbone)} ^ set(names)
    assert not wrong, f"adapters are missing or on other layers: {sorted(wrong)[:4]}"


def _backbone_prefixes(model: BaseEmbeddingModel) -> list[tuple[str, nn.Module]]:
    return [(_module_name(model, backbone) + ".", backbone) for backbone in model.backbones().values()]


def _tower_prefixes(model: BaseEmbeddingModel) -> dict[Tower, str]:
    return {tower: _module_name(model, network) + "." for tower, network in model.towers().items()}


def _module_name(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]
