"""Settings that a model does not support: each is a problem in words, so that none is ignored."""

from collections.abc import Callable

from vembed.model.families.family import Family
from vembed.model.families.registry import families
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.model.vectors.fusion_registry import SUM, unknown_fusion


def unsupported_settings(spec: ModelSpec, family: Family, settings: ModelSettings) -> list[str]:
    """A message for every setting that a model of this spec does not support."""
    checks: tuple[Callable[[ModelSpec, ModelSettings], list[str]], ...] = (
        _name_problems,
        _freezing_problems,
        _code_problems,
        _text_problems,
        _pooling_problems,
        _image_problems,
        _projection_problems,
        _fusion_problems,
    )
    problems = [problem for check in checks for problem in check(spec, settings)]
    problems += _family_problems(spec, family, settings)
    return problems + (family.check(spec, settings) if family.check is not None else [])


def _name_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    pair = [key for key in ("text_model_name", "image_model_name") if getattr(settings, key) is not None]
    if settings.model_name is None or not pair:
        return []
    return [f"model_name and {' and '.join(pair)} exclude each other; keep one or the other"]


def _freezing_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """freeze_layers of a tower that the model lacks; the number of its layers is checked when it is loaded."""
    absent = [tower for tower in settings.freeze_layers if tower not in spec.towers]
    return [f"freeze_layers: a {spec.family} model has no {absent[0]} tower; it reads {spec.reads()}"] if absent else []


def _code_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    if spec.own_code is None or settings.trust_remote_code:
        return []
    return [
        f"this model runs code that comes with its checkpoint ({spec.own_code}); read that code, and set"
        " trust_remote_code: true (--trust_remote_code) if you trust it"
    ]


def _text_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    keys = ("max_length", "query_prompt", "document_prompt")
    used = [key for key in keys if getattr(settings, key) is not None]
    if used and not spec.supports(["text"]):
        return [f"{', '.join(used)}: a {spec.family} model reads no text"]
    if settings.max_length is None:
        return []
    if spec.pad_to is not None and settings.max_length < spec.pad_to:
        return [f"max_length {settings.max_length}: a {spec.family} model reads texts of exactly {spec.pad_to} tokens"]
    if spec.text_limit is not None and settings.max_length > spec.text_limit:
        return [f"max_length {settings.max_length}: this model reads at most {spec.text_limit} tokens"]
    return []


def _pooling_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """A pooling of images for a text tower; poolings that an architecture lacks are found when it is loaded."""
    pooling = settings.pooling
    if pooling not in ("gem", "own") or not spec.supports(["text"]) or spec.pooling.get("text") == "own":
        return []
    return [f"pooling {pooling!r}: this is for images; a {spec.family} model pools the tokens of a text"]


def _image_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    if settings.image_size is None or spec.supports(["image"]):
        return []
    return [f"image_size: a {spec.family} model reads no images"]


def _projection_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Settings of the projection that differ from the checkpoint's, a kind that is set to the default included."""
    problems = []
    if "projection_head" in settings.model_fields_set and settings.projection_head != spec.projection_head:
        problems.append(
            f"projection_head: a {spec.family} model has none; composed models have"
            if spec.projection_head is None
            else f"projection_head {settings.projection_head}: this checkpoint was built with {spec.projection_head}"
        )
    dim, new = settings.projection_dim, spec.projection_dim is None and spec.late is not None
    if dim is not None and dim != spec.projection_dim and not new:  # a new projection gets any width
        problems.append(
            f"projection_dim: a {spec.family} model has no projection; composed and late-interaction models have"
            if spec.projection_dim is None
            else f"projection_dim {dim}: this checkpoint was built with {spec.projection_dim}"
        )
    return problems


def _fusion_problems(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """An unknown fusion, or another one than the checkpoint was trained with."""
    wanted = settings.fusion
    if wanted is None:
        return []
    problem = unknown_fusion(wanted)
    if problem is not None:
        return [problem]
    if spec.fusion not in (wanted, SUM):
        return [f"fusion {wanted}: this checkpoint has learned {spec.fusion}, which cannot be exchanged; leave it out"]
    return []


def _family_problems(spec: ModelSpec, family: Family, settings: ModelSettings) -> list[str]:
    """Settings that only some families support, and this one does not."""
    problems = []
    for key, field in ModelSettings.model_fields.items():
        extra = field.json_schema_extra
        by_family = isinstance(extra, dict) and bool(extra.get("by_family"))
        if not by_family or key in family.keys or getattr(settings, key) == field.default:
            continue
        able = [other.name for other in families() if key in other.keys]
        hint = f"; these have: {', '.join(able)}" if able else ""
        problems.append(f"{key}: a {spec.family} model has no use for it{hint}")
    return problems
