"""What is known about architectures before any weight is read: their family, limits and usual names."""

from dataclasses import dataclass

from vembed.model.settings import Tower
from vembed.model.spec import Pooling


@dataclass(frozen=True)
class Family:
    """A kind of model that is loaded, fed and tuned in one way. `preset` names its recommended settings."""

    name: str
    preset: str
    towers: tuple[Tower, ...]


@dataclass(frozen=True)
class Architecture:
    """What transformers' `model_type` tells: family, pooling, and the text length when config.json does not say."""

    family: str
    pooling: Pooling
    max_positions: int | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family("clip", "clip", ("text", "vision")),
        Family("siglip", "siglip", ("text", "vision")),
        Family("text", "text", ("text",)),
        Family("vision", "dino", ("vision",)),
        Family("composed", "composed", ("text", "vision")),
    )
}

ARCHITECTURES = {
    "clip": Architecture("clip", "own", 77),
    "siglip": Architecture("siglip", "own", 64),
    "albert": Architecture("text", "mean", 512),
    "bert": Architecture("text", "mean", 512),
    "camembert": Architecture("text", "mean", 514),
    "distilbert": Architecture("text", "mean", 512),
    "electra": Architecture("text", "mean", 512),
    "mpnet": Architecture("text", "mean", 514),
    "roberta": Architecture("text", "mean", 514),
    "xlm-roberta": Architecture("text", "mean", 514),
    "deit": Architecture("vision", "cls"),
    "dinov2": Architecture("vision", "cls"),
    "dinov2_with_registers": Architecture("vision", "cls"),
    "timm_wrapper": Architecture("vision", "own"),
    "vit": Architecture("vision", "cls"),
}

# These number positions from pad_token_id + 1, so fewer tokens fit than max_position_embeddings says.
OFFSET_POSITIONS = {"camembert", "mpnet", "roberta", "xlm-roberta"}

# Other names that `encoder_mode` takes.
FAMILY_ALIASES = {
    "bert": "text",
    "dino": "vision",
    "dinov2": "vision",
    "timm": "vision",
    "vit": "vision",
}

# Short names that `model_name` takes.
MODEL_ALIASES = {
    "clip": "openai/clip-vit-base-patch32",
    "siglip": "google/siglip-base-patch16-224",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "bert": "google-bert/bert-base-uncased",
    "dinov2": "facebook/dinov2-small",
    "vit": "google/vit-base-patch16-224-in21k",
}
