"""Composed models: any text tower and any vision tower, joined by new projection heads."""

from vembed.errors import ModelError
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import PROCESSOR, check_patches, check_pooling
from vembed.model.folder.facts import ModelFacts
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    raise ModelError(
        f"{facts.folder}: a composed model is named by its towers: text_model_name and image_model_name, in the place"
        " of model_name"
    )


def describe_composed(text: ModelSpec, vision: ModelSpec, settings: ModelSettings) -> ModelSpec:
    """The spec of the model with these two towers."""
    return text.model_copy(
        update={
            "family": "composed",
            "preset": "composed",
            "towers": ("text", "vision"),
            "pooling": {**text.pooling, **vision.pooling},
            "image_size": vision.image_size,
            "max_num_patches": vision.max_num_patches,
            "normalize": True,
            "similarity": "cosine",
            "projection_head": settings.projection_head,
            "projection_dim": settings.projection_dim,
        }
    )


def _check(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    return check_pooling(spec, settings) + check_patches(spec, settings)


COMPOSED = Family(
    name="composed",
    preset="composed",
    towers=("text", "vision"),
    model="vembed.model.backbones.composed:ComposedModel",
    processor=PROCESSOR,
    describe=_describe,
    keys=frozenset({"fusion", "max_num_patches"}),
    check=_check,
    subfolders={"text": "text", "vision": "image"},
)
