"""A tiny model of a real architecture that every test of the contract runs on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """What the tests need to know of one model.

    make: writes the model's folder and returns it. settings: beyond model_name, for loading it. towers: the cases that
    a composed model joins, in the place of a folder. family: what it must be recognised as.
    text, image: what it reads. opens_in_sentence_transformers: whether that can express it (then embeddings are equal).
    lora_target_modules: layers for adapters, where the default finds none. mixed: whether one row may hold both.
    checkpoints: whether transformers' class can recompute activations.
    auto_class: by which class of transformers the folder opens. exact: whether all of its code follows float64 weights
    (Gemma's norms and NaFlex positions are computed in float32). near: whether another case runs nearly all of the same
    code, so that the quick tests leave this one to the whole suite. rounds_pixels: whether the model's own processor
    resizes in float, where ours rounds to uint8 (DINOv3): vectors of images are then equal up to a cosine of 0.9999.
    """

    name: str
    family: str
    make: Callable[[str], str] | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    towers: tuple[str, str] | None = None
    text: bool = True
    image: bool = True
    opens_in_sentence_transformers: bool = True
    lora_target_modules: tuple[str, ...] | None = None
    mixed: bool = True
    auto_class: str = "AutoModel"
    exact: bool = True
    checkpoints: bool = True
    rounds_pixels: bool = False
    near: bool = False
