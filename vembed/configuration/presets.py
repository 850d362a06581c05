"""The preset of a run: named by the user or found by the model, and what of it takes effect."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vembed.configuration.keys import build, faults_of
from vembed.configuration.layers import Problem, Setting, read_preset
from vembed.configuration.rules import alternatives, unmet_condition
from vembed.configuration.sections import NO_PRESET, Catalogue
from vembed.configuration.yaml_text import Location
from vembed.errors import ConfigError, VembedError
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.model.detect import detect
from vembed.model.settings import ModelSettings
from vembed.utils.untrusted import is_folder


@dataclass(frozen=True)
class DroppedValue:
    """A preset's value that was not taken, and why."""

    key: str
    value: object
    origin: str
    reason: str


def choose_preset(user: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Problem]]:
    """The values of the preset that the user names, else of the one that fits the model; and what is wrong there."""
    detected, problems = _detect_preset(user)
    try:
        named = user["preset"].value if "preset" in user else detected
        if not isinstance(named, str) or named == NO_PRESET:
            return {}, problems
        use_lora = "use_lora" in user and user["use_lora"].value is True
        preset = read_preset(named).settings(use_lora=use_lora, detected="preset" not in user)
    except ConfigError as error:
        return {}, [*problems, Problem(origin_of(("preset",), user), ("preset",), str(error))]
    return {"preset": Setting(named, "detected"), **preset}, problems


def _detect_preset(user: Mapping[str, Setting]) -> tuple[str | None, list[Problem]]:
    """The preset of the model's family, and unsupported settings. Hub models are read for their preset only."""
    values = {key: setting.value for key, setting in user.items() if key in ModelSettings.model_fields}
    model = build(
        ModelSettings, {key: value for key, value in values.items() if not faults_of(ModelSettings, {key: value})}
    )
    name, towers = model.model_name, (model.text_model_name, model.image_model_name)
    whole = all(towers) if name is None else not any(towers)
    known = "preset" in user and not all(is_folder(one) for one in (name, *towers) if one is not None)
    if known or not whole:
        return None, []
    try:
        return detect(name, model).spec.preset, []
    except VembedError as error:
        return None, [_model_problem(text, user) for text in str(error).splitlines()]


def _model_problem(text: str, user: Mapping[str, Setting]) -> Problem:
    """A problem with the model, with the origin of the key that its text begins with, else of the model's name."""
    key = re.split(r"[\s:,]", text)[0]
    if key in user:
        return Problem(origin_of((key,), user), (), text)
    location = ("model_name",) if "model_name" in user else ("text_model_name",)
    return Problem(origin_of(location, user), location, text)


def registered_loss(user: Mapping[str, Setting], preset: Mapping[str, Setting]) -> str:
    """The loss that is asked for, or the default one where that is unknown (`_findings` says so)."""
    asked = {**preset, **user}.get("loss_type")
    name = asked.value if asked is not None else None
    return (
        name if isinstance(name, str) and name in LossRegistry else str(LossSettings.model_fields["loss_type"].default)
    )


def distills_scores(settings: Mapping[str, Setting]) -> bool:
    """True if a teacher's scores are learned from beside the loss."""
    asked, kind = settings.get("use_distillation"), settings.get("distillation_type")
    return asked is not None and asked.value is True and (kind is None or kind.value != "cosine")


def fit_preset(
    preset: Mapping[str, Setting], valid: Mapping[str, Setting], catalogue: Catalogue
) -> tuple[dict[str, Setting], tuple[DroppedValue, ...]]:
    """The preset's values that take effect beside what the user set, and those that do not."""
    reasons: dict[str, str] = {}
    for name in preset:
        if name in catalogue.idle:
            reasons[name] = other_loss(name, catalogue)
        elif taken := alternatives(name, valid, catalogue.keys):
            reasons[name] = f"{taken[0]} is set"
    kept = {name: setting for name, setting in preset.items() if name not in reasons}
    values = {name: key.default for name, key in catalogue.keys.items()}
    values |= {name: setting.value for name, setting in {**kept, **valid}.items()}
    for name in kept:
        if unmet := unmet_condition(catalogue.keys[name], values):
            reasons[name] = f"only with {unmet}"
    dropped = [DroppedValue(name, preset[name].value, preset[name].origin, reason) for name, reason in reasons.items()]
    kept = {name: setting for name, setting in kept.items() if name not in reasons}
    return kept, tuple(entry for entry in dropped if entry.key not in valid)


def other_loss(name: str, catalogue: Catalogue) -> str:
    """With which losses a key has a meaning, for one that the chosen loss leaves idle."""
    return f"only with loss_type: {' or '.join(catalogue.idle[name])}"


def origin_of(location: Location, settings: Mapping[str, Setting]) -> str:
    """The origin of a value, "" for one that nobody set."""
    key = str(location[0])
    return settings[key].origin_at(location) if key in settings else ""
