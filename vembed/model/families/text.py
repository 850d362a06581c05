"""Text encoders."""

from vembed.model.facts import ModelFacts
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import PROCESSOR, check_pooling, describe_text
from vembed.model.spec import ModelSpec


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    return describe_text("text", facts, architecture)


TEXT = Family(
    name="text",
    preset="text",
    towers=("text",),
    model="vembed.model.backbones.auto:TextModel",
    processor=PROCESSOR,
    describe=_describe,
    architectures={
        "albert": Architecture("mean", 512),
        "bert": Architecture("mean", 512),
        "camembert": Architecture("mean", 514, offset_positions=True),
        "distilbert": Architecture("mean", 512),
        "electra": Architecture("mean", 512),
        "mpnet": Architecture("mean", 514, offset_positions=True),
        "roberta": Architecture("mean", 514, offset_positions=True),
        "xlm-roberta": Architecture("mean", 514, offset_positions=True),
    },
    check=check_pooling,
    aliases=("bert",),
    model_names={
        "minilm": "sentence-transformers/all-MiniLM-L6-v2",
        "bert": "google-bert/bert-base-uncased",
    },
)
