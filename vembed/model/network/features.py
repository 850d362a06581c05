"""Features: a tower's outputs for texts or images, before heads; computed now, or taken from the inputs."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vembed.model.settings import Tower
from vembed.model.vectors.rows import merged
from vembed.types import Embeddings, Inputs, Ragged

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel

# Names of features within inputs, where they replace the tensors that the tower reads.
FEATURES: Mapping[Tower, str] = {"text": "text_features", "vision": "image_features"}
_TEXT_TENSORS = ("input_ids", "attention_mask", "pooled_tokens")


def features_by_tower(model: "BaseEmbeddingModel", inputs: Inputs) -> Iterator[tuple[Tower, Ragged]]:
    """The features [slices, width] of each tower that the inputs hold something for, text before vision."""
    num_towers = 0
    for tower in FEATURES:
        features = features_of(model, tower, inputs)
        if features is not None:
            num_towers += 1
            yield tower, features
    assert num_towers or inputs.num_rows == 0


def features_of(model: "BaseEmbeddingModel", tower: Tower, inputs: Inputs) -> Ragged | None:
    """A tower's features [slices, width]; None if the inputs hold nothing for it. Some rows may hold theirs already."""
    given, computed = inputs.tensors.get(FEATURES[tower]), _computed(model, tower, inputs)
    if given is None or not len(given.values):
        return computed
    return given if computed is None else merged(given, computed)


def slice_features(model: "BaseEmbeddingModel", inputs: Inputs) -> Embeddings:
    """The features [slices, width] of inputs that hold either texts or images."""
    found = [features.values for _, features in features_by_tower(model, inputs)]
    assert len(found) == 1, "the inputs hold texts or images"
    return Embeddings(found[0])


def input_names(model: "BaseEmbeddingModel", tower: Tower) -> tuple[str, ...]:
    """The names of the tensors that a tower reads, in the order of `embed_text`'s arguments."""
    return model.image_tensors if tower == "vision" else _TEXT_TENSORS


def _computed(model: "BaseEmbeddingModel", tower: Tower, inputs: Inputs) -> Ragged | None:
    read = {name: inputs.tensors[name] for name in input_names(model, tower) if name in inputs.tensors}
    if not any(len(ragged.values) for ragged in read.values()):
        return None
    values = {name: ragged.values for name, ragged in read.items()}
    features = model.embed_images(values) if tower == "vision" else model.embed_text(*values.values())
    return Ragged(features, next(iter(read.values())).counts)
