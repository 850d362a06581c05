"""Dual encoders: a text and a vision tower that were trained together. CLIP and its kin, SigLIP."""

from vembed.model.facts import ModelFacts
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import PROCESSOR, check_pooling, describe_dual
from vembed.model.spec import ModelSpec

_MODEL = "vembed.model.backbones.auto:DualModel"


def _describe_clip(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    return describe_dual("clip", facts, architecture)


def _describe_siglip(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """SigLIP was trained on texts of one length, padded."""
    spec = describe_dual("siglip", facts, architecture)
    return spec.model_copy(update={"pad_to": spec.text_limit})


CLIP = Family(
    name="clip",
    preset="clip",
    towers=("text", "vision"),
    model=_MODEL,
    processor=PROCESSOR,
    describe=_describe_clip,
    architectures={"clip": Architecture("own", 77)},
    check=check_pooling,
    model_names={"clip": "openai/clip-vit-base-patch32"},
)

SIGLIP = Family(
    name="siglip",
    preset="siglip",
    towers=("text", "vision"),
    model=_MODEL,
    processor=PROCESSOR,
    describe=_describe_siglip,
    architectures={"siglip": Architecture("own", 64)},
    check=check_pooling,
    model_names={"siglip": "google/siglip-base-patch16-224"},
)
