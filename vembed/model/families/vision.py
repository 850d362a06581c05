"""Vision encoders."""

from vembed.model.facts import ModelFacts
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import PROCESSOR, check_pooling, describe_vision
from vembed.model.spec import ModelSpec


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    return describe_vision("vision", facts, architecture)


VISION = Family(
    name="vision",
    preset="dino",
    towers=("vision",),
    model="vembed.model.backbones.auto:VisionModel",
    processor=PROCESSOR,
    describe=_describe,
    architectures={
        "deit": Architecture("cls"),
        "dinov2": Architecture("cls"),
        "dinov2_with_registers": Architecture("cls"),
        "timm_wrapper": Architecture("own"),
        "vit": Architecture("cls"),
    },
    check=check_pooling,
    aliases=("dino", "dinov2", "timm", "vit"),
    model_names={
        "dinov2": "facebook/dinov2-small",
        "vit": "google/vit-base-patch16-224-in21k",
    },
)
