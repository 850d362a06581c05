"""Vision encoders."""

from vembed.errors import ModelError
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import PROCESSOR, check_patches, describe_vision, num_patches
from vembed.model.folder.facts import ModelFacts
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.model.vectors.prefix_tokens import prefix_tokens

_CLS = Architecture("cls")
_OWN = Architecture("own")
_NAFLEX = "siglip2_vision_model"


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    spec = describe_vision("vision", facts, architecture)
    _refuse_all_tokens(facts)
    patches = num_patches(facts) if facts.model_type == _NAFLEX else None
    return spec.model_copy(update={"max_num_patches": patches})


def _refuse_all_tokens(facts: ModelFacts) -> None:
    """Raise ModelError for 1_Pooling over all tokens: mean and max pool patch tokens only here, which differs."""
    pooling = (facts.sentence.pooling if facts.sentence else None) or ""
    if {"mean", "max"} & set(pooling.split("+")) and prefix_tokens(facts.config).count:
        raise ModelError(
            f"{facts.folder / 'modules.json'}: 1_Pooling pools all tokens by {pooling}, those that are no patch's among"
            " them, which is not supported; use the folder without modules.json, and set pooling"
        )


def _check(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Messages for unsupported settings; poolings that an architecture lacks are found when it is loaded."""
    last = ["pooling 'last': images are pooled by cls, cls+mean, mean, max, gem or own"]
    return check_patches(spec, settings) + (last if settings.pooling == "last" else [])


VISION = Family(
    name="vision",
    preset="dino",
    towers=("vision",),
    model="vembed.model.backbones.auto:VisionModel",
    processor=PROCESSOR,
    describe=_describe,
    architectures={
        "clip_vision_model": _OWN,
        "convnext": _OWN,
        "convnextv2": _OWN,
        "deit": _CLS,
        "dinov2": _CLS,
        "dinov2_with_registers": _CLS,
        "dinov3_convnext": _OWN,
        "dinov3_vit": _CLS,
        "hiera": _OWN,
        "ijepa": Architecture("mean"),
        "siglip2_vision_model": _OWN,
        "siglip_vision_model": _OWN,
        "swin": _OWN,
        "swinv2": _OWN,
        "timm_wrapper": _OWN,
        "vit": _CLS,
        "vit_mae": _CLS,
    },
    keys=frozenset({"max_num_patches"}),
    check=_check,
    aliases=("convnext", "dino", "dinov2", "dinov3", "mae", "timm", "vit"),
    model_names={
        "convnext": "facebook/convnextv2-base-22k-224",
        "dino": "facebook/dino-vits16",
        "dinov2": "facebook/dinov2-small",
        "dinov3": "facebook/dinov3-vits16-pretrain-lvd1689m",
        "mae": "facebook/vit-mae-base",
        "vit": "google/vit-base-patch16-224-in21k",
    },
)
