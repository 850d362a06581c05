"""Detect a model's family and spec from its JSON files. Imports neither torch nor transformers.

1. vembed_config.json, of a vembed checkpoint -> the spec in it
2. else the family that encoder_mode names, or the one that claims the folder -> the spec that it describes
3. settings override the spec; all that the model does not support are refused at once
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from vembed.errors import ModelError
from vembed.model.adapters.base_model import read_base
from vembed.model.families.composed import describe_composed
from vembed.model.families.family import Family
from vembed.model.families.registry import family_for, family_named, family_of_mode, hub_id
from vembed.model.families.unsupported_settings import unsupported_settings
from vembed.model.folder.damage import SPEC_FILES, files_to_blame
from vembed.model.folder.facts import ModelFacts, read_facts
from vembed.model.folder.find import SPEC_FILE, Json, config_folder, read_table
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


@dataclass(frozen=True)
class Detected:
    """A model's spec, and the reason for it: what was found in its files or settings, in words."""

    spec: ModelSpec
    reason: str


def detect(name: str | None, settings: ModelSettings) -> Detected:
    """The spec of a folder or hub id (default: the settings' model or models), with the settings applied.

    Raises ModelError that lists every setting that the model does not support.
    """
    name = name if name is not None else settings.model_name
    shown = name if name is not None else "of two towers"
    with files_to_blame(shown, f"model {shown!r}: its files do not describe a model", SPEC_FILES):
        detected = (
            _detect_pair(settings) if name is None else _detect_one(name, settings.revision, settings.encoder_mode)
        )
    family = family_named(detected.spec.family)
    problems = _mode_problems(detected.spec, settings) + unsupported_settings(detected.spec, family, settings)
    if problems:
        raise ModelError("\n".join(problems))
    return replace(detected, spec=_with_settings(detected.spec, settings))


def _detect_one(
    name: str, revision: str | None, encoder_mode: str | None = None, seen: tuple[Path, ...] = ()
) -> Detected:
    """seen: the folders of adapters that led here."""
    folder = config_folder(hub_id(name), revision)
    if folder.resolve() in seen:
        raise ModelError(f"{folder} holds an adapter that belongs, in the end, to itself; name its base anew")
    saved = read_table(folder / SPEC_FILE)
    if saved is not None:
        return _saved_spec(saved, folder)
    base = read_base(folder)
    if base is not None:  # adapters only: the spec is that of their base
        detected = _detect_one(base.model_name, base.revision, encoder_mode, (*seen, folder.resolve()))
        return replace(detected, reason=f"an adapter of {base.model_name}: {detected.reason}")
    facts = read_facts(hub_id(name), folder)
    if encoder_mode in (None, "auto"):
        family, reason = family_for(facts)
    else:
        facts = replace(facts, mode=encoder_mode)
        family, reason = _requested_family(str(encoder_mode), facts), f"encoder_mode is {encoder_mode}"
    architecture = family.architecture(facts)
    assert architecture is not None, f"{family.name} claims {facts.model_type}, which it cannot read"
    spec = family.describe(facts, architecture)
    note = family.note(facts) if family.note is not None else None
    source = (
        "1_Pooling" if facts.sentence and facts.sentence.pooling else "its model card" if note else "its architecture"
    )
    words = [reason, *([note] if note else []), f"pooling {next(iter(spec.pooling.values()))} by {source}"]
    return Detected(spec, "; ".join(words))


def _requested_family(encoder_mode: str, facts: ModelFacts) -> Family:
    family = family_of_mode(encoder_mode)
    if family.architecture(facts) is None:
        own = family_for(facts)[0]
        able = ", ".join(family.architectures) or "towers of its own: text_model_name and image_model_name"
        raise ModelError(
            f"encoder_mode {encoder_mode!r} does not fit: this is a {own.name} model (model_type {facts.model_type});"
            f" {family.name} reads {able}"
        )
    return family


def _detect_pair(settings: ModelSettings) -> Detected:
    if settings.text_model_name is None or settings.image_model_name is None:
        missing = "text_model_name" if settings.image_model_name else "image_model_name"
        one = settings.image_model_name or settings.text_model_name
        needed = f"{missing} as well" if one else "model_name, or text_model_name and image_model_name"
        raise ModelError(f"no model is named: set {needed}")
    text, vision = _tower(settings.text_model_name, "text"), _tower(settings.image_model_name, "vision")
    reason = f"text_model_name and image_model_name are given; text: {text.reason}; image: {vision.reason}"
    return Detected(describe_composed(text.spec, vision.spec, settings), reason)


def _tower(name: str, family: str) -> Detected:
    detected = _detect_one(name, None)
    if detected.spec.family != family:
        key = "text_model_name" if family == "text" else "image_model_name"
        raise ModelError(f"{key} {name!r} is a {detected.spec.family} model; a {family} model is needed there")
    return detected


def _saved_spec(saved: Json, folder: Path) -> Detected:
    try:
        spec = ModelSpec.model_validate(saved["spec"])
    except (ValidationError, KeyError, TypeError) as error:
        version = saved.get("version", "an unknown version") if isinstance(saved, dict) else "an unknown version"
        raise ModelError(
            f"{folder / SPEC_FILE} (written by {version}) does not fit this version: {_words(error)}"
        ) from error
    return Detected(spec, f"{SPEC_FILE} says so")


def _words(error: Exception) -> str:
    """What is wrong with a spec, in a line."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if not isinstance(error, ValidationError):
        return str(error)
    faults = [f"{'.'.join(map(str, one['loc'])) or 'spec'}: {one['msg'][:100]}" for one in error.errors()]
    return "; ".join(faults[:4]) + ("; and more" if len(faults) > 4 else "")


def _mode_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """A message if `encoder_mode` names another family than that of a checkpoint or a pair of towers."""
    if settings.encoder_mode in (None, "auto") or family_of_mode(str(settings.encoder_mode)).name == spec.family:
        return []
    return [f"encoder_mode {settings.encoder_mode!r} does not fit: this is a {spec.family} model"]


def _with_settings(spec: ModelSpec, settings: ModelSettings) -> ModelSpec:
    """The spec with every setting that differs from its default and has a field there."""
    fields = {key: field for key, field in ModelSettings.model_fields.items() if key in ModelSpec.model_fields}
    values = {key: getattr(settings, key) for key in fields if key != "pooling"}
    update = {key: value for key, value in values.items() if value != fields[key].default}
    if settings.pooling is not None:
        # Of a composed model it is the text tower's; its image tower keeps the architecture's pooling.
        update["pooling"] = {**spec.pooling, spec.towers[0]: settings.pooling}
    return spec.model_copy(update=update)
