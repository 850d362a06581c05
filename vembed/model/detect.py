"""Find out from its JSON files how a model is to be used. Imports neither torch nor transformers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from vembed.errors import ModelError
from vembed.model.families import ARCHITECTURES, FAMILIES, FAMILY_ALIASES, OFFSET_POSITIONS, Architecture
from vembed.model.files import SPEC_FILE, config_folder, read_json
from vembed.model.sentence_folder import SentenceFolder, read_sentence_folder
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec, Pooling
from vembed.registry import nearest_names

_Config = dict[str, Any]  # Any: config.json


@dataclass(frozen=True)
class Detected:
    """How a model is used, what in its files (or in the settings) says so, and the most tokens its text tower reads."""

    spec: ModelSpec
    reason: str
    text_limit: int | None = None


def detect(name: str | None, settings: ModelSettings) -> Detected:
    """The spec of a folder or hub id (default: the settings' model or models), with the settings applied.

    Looked for in this order: vembed_config.json, sentence-transformers' files, config.json. Raises ModelError that
    lists every setting that the model cannot honour.
    """
    name = name if name is not None else settings.model_name
    detected = _detect_pair(settings) if name is None else _detect_one(name, settings.revision)
    problems = _family_problems(detected, settings) + _setting_problems(detected, settings)
    if problems:
        raise ModelError("\n".join(problems))
    return replace(detected, spec=_with_settings(detected.spec, settings))


def family_of(encoder_mode: str) -> str:
    """The family that `encoder_mode` names. Raises ModelError that lists the known ones."""
    name = FAMILY_ALIASES.get(encoder_mode, encoder_mode)
    if name not in FAMILIES:
        known = sorted({*FAMILIES, *FAMILY_ALIASES, "auto"})
        near = nearest_names(encoder_mode, known)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"encoder_mode {encoder_mode!r} is unknown{hint} Known: {', '.join(known)}")
    return name


def _detect_one(name: str, revision: str | None) -> Detected:
    folder = config_folder(name, revision)
    saved = read_json(folder / SPEC_FILE)
    if saved is not None:
        return _saved_spec(saved, folder)
    sentence = read_sentence_folder(folder)
    config_path = folder / sentence.model_path if sentence else folder
    config = _read_config(config_path)
    architecture = _architecture(config, folder)
    return _from_files(config, architecture, sentence)


def _detect_pair(settings: ModelSettings) -> Detected:
    if settings.text_model_name is None or settings.image_model_name is None:
        missing = "text_model_name" if settings.image_model_name else "image_model_name"
        one = settings.image_model_name or settings.text_model_name
        needed = f"{missing} as well" if one else "model_name, or text_model_name and image_model_name"
        raise ModelError(f"no model is named: set {needed}")
    text_tower = _tower(settings.text_model_name, "text")
    text, vision = text_tower.spec, _tower(settings.image_model_name, "vision").spec
    spec = text.model_copy(
        update={
            "family": "composed",
            "preset": FAMILIES["composed"].preset,
            "towers": ("text", "vision"),
            "pooling": {**text.pooling, **vision.pooling},
            "image_size": vision.image_size,
            "normalize": True,
            "similarity": "cosine",
            "projection_head": settings.projection_head,
            "projection_dim": settings.projection_dim,
        }
    )
    return Detected(spec, "text_model_name and image_model_name are given", text_tower.text_limit)


def _tower(name: str, family: str) -> Detected:
    detected = _detect_one(name, None)
    if detected.spec.family != family:
        key = "text_model_name" if family == "text" else "image_model_name"
        raise ModelError(f"{key} {name!r} is a {detected.spec.family} model; a {family} model is needed there")
    return detected


def _saved_spec(saved: _Config, folder: Path) -> Detected:
    try:
        spec = ModelSpec.model_validate(saved["spec"])
    except (ValidationError, KeyError, TypeError) as error:
        version = saved.get("version", "an unknown version") if isinstance(saved, dict) else "an unknown version"
        raise ModelError(f"{folder / SPEC_FILE} (written by {version}) does not fit this version: {error}") from error
    return Detected(spec, f"{SPEC_FILE} says so", _saved_limit(spec, folder))


def _saved_limit(spec: ModelSpec, folder: Path) -> int | None:
    if "text" not in spec.towers:
        return None
    folder = folder / "text" if spec.family == "composed" else folder
    config = _read_config(folder)
    return _text_limit(config, _architecture(config, folder))


def _read_config(folder: Path) -> _Config:
    config: _Config | None = read_json(folder / "config.json")
    if config is not None:
        return config
    final = folder / "final"
    hint = f"; did you mean {str(final)!r}?" if (final / SPEC_FILE).exists() else ""
    raise ModelError(f"model folder {str(folder)!r} holds no config.json{hint}")


def _architecture(config: _Config, folder: Path) -> Architecture:
    model_type = _model_type(config)
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"{folder}: models of type {model_type!r} are not supported; supported are: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]


def _model_type(config: _Config) -> str:
    if "model_type" not in config and "architecture" in config and "pretrained_cfg" in config:
        return "timm_wrapper"  # a timm repository, which transformers opens as such
    return str(config.get("model_type", "unknown"))


def _from_files(config: _Config, architecture: Architecture, sentence: SentenceFolder | None) -> Detected:
    family = FAMILIES[architecture.family]
    reads_text = "text" in family.towers
    pooling = (sentence.pooling if sentence else None) or architecture.pooling
    limit = _text_limit(config, architecture) if reads_text else None
    asked = sentence.max_length if sentence else None
    single = len(family.towers) == 1
    spec = ModelSpec(
        family=family.name,
        preset=family.preset,
        towers=family.towers,
        pooling=dict.fromkeys(family.towers, pooling),
        normalize=sentence.normalize if sentence and single else True,
        similarity="dot" if sentence and sentence.similarity == "dot" else "cosine",
        max_length=min((length for length in (asked, limit) if length), default=None) if reads_text else None,
        pad_to=limit if family.name == "siglip" else None,
        lower_case=sentence.lower_case if sentence and reads_text else False,
        query_prompt=sentence.query_prompt if sentence and reads_text else "",
        document_prompt=sentence.document_prompt if sentence and reads_text else "",
    )
    source = "1_Pooling" if sentence and sentence.pooling else "its architecture"
    return Detected(spec, f"config.json says {_model_type(config)}; pooling {pooling} by {source}", limit)


def _text_limit(config: _Config, architecture: Architecture) -> int | None:
    text_config = config.get("text_config") or config
    positions = text_config.get("max_position_embeddings") or architecture.max_positions
    if positions is None or _model_type(config) not in OFFSET_POSITIONS:
        return positions
    return int(positions) - int(text_config.get("pad_token_id", 1) or 0) - 1


def _family_problems(detected: Detected, settings: ModelSettings) -> list[str]:
    if settings.encoder_mode in (None, "auto"):
        return []
    family = family_of(str(settings.encoder_mode))
    if family == detected.spec.family:
        return []
    return [f"encoder_mode {settings.encoder_mode!r} does not fit: this is a {detected.spec.family} model"]


def _setting_problems(detected: Detected, settings: ModelSettings) -> list[str]:
    checks: tuple[Callable[[ModelSpec, ModelSettings], list[str]], ...] = (
        _name_problems,
        _text_problems,
        _image_problems,
        _pooling_problems,
        _projection_problems,
    )
    problems = [problem for check in checks for problem in check(detected.spec, settings)]
    limit = detected.text_limit
    if settings.max_length is not None and limit is not None and settings.max_length > limit:
        problems.append(f"max_length {settings.max_length}: this model reads at most {limit} tokens")
    return problems


def _name_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    pair = [key for key in ("text_model_name", "image_model_name") if getattr(settings, key) is not None]
    if settings.model_name is None or not pair:
        return []
    return [f"model_name and {' and '.join(pair)} exclude each other; keep one or the other"]


def _text_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    keys = ("max_length", "query_prompt", "document_prompt")
    used = [key for key in keys if getattr(settings, key) is not None]
    if used and "text" not in spec.towers:
        return [f"{', '.join(used)}: a {spec.family} model reads no text"]
    if settings.max_length is not None and spec.pad_to is not None and settings.max_length < spec.pad_to:
        return [f"max_length {settings.max_length}: a {spec.family} model reads texts of exactly {spec.pad_to} tokens"]
    return []


def _image_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    problems = []
    if settings.max_pixels is not None:
        problems.append(
            f"max_pixels: a {spec.family} model resizes every image to one size; image_size is the key for that"
            if "vision" in spec.towers
            else f"max_pixels: a {spec.family} model reads no images"
        )
    if settings.image_size is not None and "vision" not in spec.towers:
        problems.append(f"image_size: a {spec.family} model reads no images")
    return problems


def _pooling_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    pooling = next(iter(spec.pooling.values()))
    if settings.pooling is None or pooling != "own":
        return []
    return [f"pooling {settings.pooling!r}: a {spec.family} model of this kind pools by its own code"]


def _projection_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    default = ModelSettings.model_fields["projection_head"].default
    asked = {
        "projection_dim": settings.projection_dim,
        "projection_head": settings.projection_head if settings.projection_head != default else None,
    }
    problems = []
    for key, value in asked.items():
        own = getattr(spec, key)
        if value is not None and value != own:
            problems.append(
                f"{key} {value}: this checkpoint was built with {own}"
                if spec.family == "composed"
                else f"{key}: only composed models have projection heads; this is a {spec.family} model"
            )
    return problems


def _with_settings(spec: ModelSpec, settings: ModelSettings) -> ModelSpec:
    keys = ("max_length", "image_size", "query_prompt", "document_prompt")
    update = {key: getattr(settings, key) for key in keys if getattr(settings, key) is not None}
    if settings.pooling is not None:
        assert settings.pooling in get_args(Pooling)
        # Of a composed model's towers, the text tower: image towers keep the pooling of their architecture.
        update["pooling"] = {**spec.pooling, spec.towers[0]: settings.pooling}
    return spec.model_copy(update=update)
