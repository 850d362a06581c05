"""Dual encoders: a text and a vision tower that were trained together. CLIP and its variants, SigLIP, SigLIP 2."""

from typing import Literal

from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import PROCESSOR, check_patches, check_pooling, describe_dual, num_patches
from vembed.model.folder.facts import ModelFacts
from vembed.model.folder.find import Json, read_table
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec

_MODEL = "vembed.model.backbones.dual:DualModel"
# transformers' own classes; a folder with another one in `architectures` needs remote code (EVA-CLIP's model_type is
# clip).
_NATIVE = ("CLIPModel", "ChineseCLIPModel", "AltCLIPModel", "MetaClip2Model")


def _describe_clip(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    spec = describe_dual("clip", facts, architecture)
    return spec.model_copy(update={"own_code": _own_class(facts)})


def _claim_clip(facts: ModelFacts) -> str | None:
    """CLIP and its variants by model_type, and remote code named CLIP with a text_config and a vision_config."""
    own = _own_class(facts)
    if own is not None and "clip" in own.lower() and {"text_config", "vision_config"} <= facts.config.keys():
        return f"config.json says {facts.model_type}, and names code of its own ({own})"
    return f"config.json says {facts.model_type}" if facts.model_type in CLIP.architectures else None


def _own_class(facts: ModelFacts) -> str | None:
    """The class of the folder's remote code; None if transformers has a class for its weights."""
    classes = facts.config.get("architectures") or []
    native = facts.model_type in CLIP.architectures and all(name in _NATIVE for name in classes)
    return None if native else facts.own_class


def _describe_siglip(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """SigLIP was trained on texts padded to a fixed length; SigLIP 2 (with Gemma's tokenizer) on lower-cased ones."""
    spec = describe_dual("siglip", facts, architecture)
    tokenizer: Json = read_table(facts.model_folder / "tokenizer_config.json") or {}
    is_naflex = facts.model_type == "siglip2"
    is_second = is_naflex or str(tokenizer.get("tokenizer_class")).startswith(("Gemma", "Siglip2"))
    side: Literal["left", "right"] = "left" if is_second and tokenizer.get("padding_side") == "left" else "right"
    update = {
        "pad_to": spec.text_limit,
        "padding_side": side,
        "lower_case": is_second,
        "max_num_patches": num_patches(facts) if is_naflex else None,
    }
    return spec.model_copy(update=update)


def _check_siglip(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    return check_pooling(spec, settings) + check_patches(spec, settings)


CLIP = Family(
    name="clip",
    preset="clip",
    towers=("text", "vision"),
    model=_MODEL,
    processor=PROCESSOR,
    describe=_describe_clip,
    architectures={
        "clip": Architecture("own", 77),
        "altclip": Architecture("own", 514, offset_positions=True),
        "chinese_clip": Architecture("own", 512),
        "metaclip_2": Architecture("own", 77),
    },
    own_code=Architecture("own"),
    claim=_claim_clip,
    keys=frozenset({"fusion"}),
    check=check_pooling,
    aliases=("altclip", "chinese_clip", "eva_clip", "metaclip_2"),
    model_names={
        "altclip": "BAAI/AltCLIP",
        "chinese_clip": "OFA-Sys/chinese-clip-vit-base-patch16",
        "clip": "openai/clip-vit-base-patch32",
        "metaclip2": "facebook/metaclip-2-worldwide-huge-quickgelu",
    },
)

SIGLIP = Family(
    name="siglip",
    preset="siglip",
    towers=("text", "vision"),
    model=_MODEL,
    processor=PROCESSOR,
    describe=_describe_siglip,
    architectures={"siglip": Architecture("own", 64), "siglip2": Architecture("own", 64)},
    keys=frozenset({"fusion", "max_num_patches"}),
    check=_check_siglip,
    aliases=("siglip2",),
    model_names={
        "siglip": "google/siglip-base-patch16-224",
        "siglip2": "google/siglip2-base-patch16-224",
        "siglip2_naflex": "google/siglip2-base-patch16-naflex",
    },
)
