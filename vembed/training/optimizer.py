"""AdamW over groups of parameters that share a part of the model, a rate and a weight decay.

The rate of a parameter is, first match first: `learning_rates[part]`; `head_learning_rate` for the temperature and for
new weights (heads, adapters); `learning_rate` for pretrained ones. `layer_decay` then lowers it layer by layer from the
top of its tower. The temperature counts as new even where a checkpoint brings one: it is a single number on a log
scale, and at the rate of pretrained weights it would not move within a run. Rate 0 freezes. Class weights (of losses
such as ArcFace), which belong to the objective, have the rate of their loss's settings.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from vembed.errors import ConfigError
from vembed.losses.class_weights import ClassWeights
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.parameters import ParameterInfo, parameter_infos
from vembed.training.settings import GroupPart, OptimizerSettings, Part


@dataclass(frozen=True)
class GroupSummary:
    """One group of parameters as a person reads it. `layer` is set where `layer_decay` tells layers apart."""

    part: GroupPart
    pretrained: bool
    layer: int | None
    num_tensors: int
    num_parameters: int
    learning_rate: float
    weight_decay: float


def freeze_by_rate(model: BaseEmbeddingModel, settings: OptimizerSettings) -> list[Part]:
    """Freeze every parameter whose rate is 0; returns the parts that are frozen whole by that.

    Raises ConfigError when `learning_rates` names a part that the model lacks or that is frozen already, and when
    nothing would learn.
    """
    infos = parameter_infos(model)
    _check_parts(infos, settings)
    trainable = {info.part for info in infos if info.parameter.requires_grad}
    for info in infos:
        if _rate(info, settings) == 0:
            info.parameter.requires_grad_(False)
    still_trainable = {info.part for info in infos if info.parameter.requires_grad}
    frozen = trainable - still_trainable
    if not still_trainable - {"scale"}:
        raise ConfigError(
            "nothing would learn: every weight is frozen or has rate 0; check freeze, learning_rate, head_learning_rate"
            " and learning_rates"
        )
    model.freeze([tower for tower in model.spec.towers if tower in frozen])  # puts them in eval mode: no dropout
    return sorted(frozen)


def build_optimizer(
    model: BaseEmbeddingModel, settings: OptimizerSettings, classes: ClassWeights | None = None
) -> tuple[torch.optim.AdamW, list[GroupSummary]]:
    """AdamW over every parameter that needs a gradient, each in exactly one group, and the groups' summaries.

    A group's `initial_lr` is its rate before the schedule.
    """
    members: dict[tuple[Part, bool, int | None, float, float], list[ParameterInfo]] = defaultdict(list)
    for info in parameter_infos(model):
        if info.parameter.requires_grad:
            members[_group_key(info, settings)].append(info)
    groups = []
    summaries = []
    for (part, pretrained, layer, rate, decay), infos in members.items():
        parameters = [info.parameter for info in infos]
        size = sum(parameter.numel() for parameter in parameters)
        summaries.append(GroupSummary(part, pretrained, layer, len(parameters), size, rate, decay))
        groups.append(_group(parameters, summaries[-1]))
    if classes is not None:
        rate, size = classes.learning_rate, classes.weight.numel()
        summaries.append(GroupSummary("classes", False, None, 1, size, rate, settings.weight_decay))
        groups.append(_group([classes.weight], summaries[-1]))
    optimizer = torch.optim.AdamW(
        groups, betas=(settings.adam_beta1, settings.adam_beta2), eps=settings.adam_epsilon, fused=True
    )
    return optimizer, summaries


def apply_schedule(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its rate before the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def rates_by_part(optimizer: torch.optim.Optimizer) -> dict[GroupPart, float]:
    """Part -> the highest rate of its groups now."""
    rates: dict[GroupPart, float] = {}
    for group in optimizer.param_groups:
        rates[group["part"]] = max(group["lr"], rates.get(group["part"], 0.0))
    return rates


def _group(parameters: Sequence[Parameter], summary: GroupSummary) -> dict[str, Any]:  # Any: as torch takes it
    rate, decay = summary.learning_rate, summary.weight_decay
    return {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay, "part": summary.part}


def _group_key(info: ParameterInfo, settings: OptimizerSettings) -> tuple[Part, bool, int | None, float, float]:
    layer = info.layer if settings.layer_decay < 1 else None
    return info.part, info.pretrained, layer, _rate(info, settings), _weight_decay(info, settings)


def _rate(info: ParameterInfo, settings: OptimizerSettings) -> float:
    new = info.part == "scale" or not info.pretrained
    rate = settings.learning_rates.get(info.part, settings.head_learning_rate if new else settings.learning_rate)
    if info.layer is None or info.num_layers is None:
        return rate
    return rate * settings.layer_decay ** (info.num_layers - info.layer)


def _weight_decay(info: ParameterInfo, settings: OptimizerSettings) -> float:
    """Weight decay; 0 for biases, norms and single vectors (parameters of one axis), and for the temperature."""
    return 0.0 if info.parameter.ndim <= 1 or info.part == "scale" else settings.weight_decay


def _check_parts(infos: Sequence[ParameterInfo], settings: OptimizerSettings) -> None:
    parts = {info.part for info in infos}
    problems = [
        f"learning_rates: the model has no part {part!r}; it has {', '.join(sorted(parts))}"
        for part in _missing(settings.learning_rates, parts)
    ]
    trainable = {info.part for info in infos if info.parameter.requires_grad}
    rated = [part for part, rate in settings.learning_rates.items() if rate > 0 and part in parts]
    problems += [
        f"learning_rates: {part} has a rate but does not learn; take it from freeze (or set learn_temperature)"
        for part in _missing(rated, trainable)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _missing(names: Iterable[Part], present: set[Part]) -> list[Part]:
    return [name for name in names if name not in present]
