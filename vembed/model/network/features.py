"""Features of towers: what a tower gives for texts or images, before heads; made now, or given in the inputs."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vembed.model.settings import Tower
from vembed.model.vectors.rows import merged
from vembed.types import Embeddings, Inputs, Ragged

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel

# What a tower gave stands in the inputs under these names, in the place of what it read.
FEATURES: Mapping[Tower, str] = {"text": "text_features", "vision": "image_features"}
_TEXT_TENSORS = ("input_ids", "attention_mask", "pooled_tokens")


def features_by_tower(model: "BaseEmbeddingModel", inputs: Inputs) -> Iterator[tuple[Tower, Ragged]]:
    """The features [slices, width] of each tower that reads something of the inputs, one tower after the other."""
    num_towers = 0
    for tower in FEATURES:
        features = features_of(model, tower, inputs)
        if features is not None:
            num_towers += 1
            yield tower, features
    assert num_towers or inputs.num_rows == 0


def features_of(model: "BaseEmbeddingModel", tower: Tower, inputs: Inputs) -> Ragged | None:
    """A tower's features [slices, width], made now or given; None where no row has what the tower reads."""
    given, made = inputs.tensors.get(FEATURES[tower]), _made(model, tower, inputs)
    return made if given is None or not len(given.values) else given if made is None else merged(given, made)


def slice_features(model: "BaseEmbeddingModel", inputs: Inputs) -> Embeddings:
    """What one tower gives for inputs that it alone reads, before heads: [slices, width]."""
    made = [features.values for _, features in features_by_tower(model, inputs)]
    assert len(made) == 1, "the inputs hold texts or images"
    return Embeddings(made[0])


def tensors_read(model: "BaseEmbeddingModel", tower: Tower) -> tuple[str, ...]:
    """The names of what a tower reads, in the order in which `embed_text` takes it."""
    return model.image_tensors if tower == "vision" else _TEXT_TENSORS


def _made(model: "BaseEmbeddingModel", tower: Tower, inputs: Inputs) -> Ragged | None:
    read = {name: inputs.tensors[name] for name in tensors_read(model, tower) if name in inputs.tensors}
    if not any(len(ragged.values) for ragged in read.values()):
        return None
    values = {name: ragged.values for name, ragged in read.items()}
    features = model.embed_images(values) if tower == "vision" else model.embed_text(*values.values())
    return Ragged(features, next(iter(read.values())).counts)
