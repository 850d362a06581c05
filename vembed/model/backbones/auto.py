"""Models that are one tower of transformers: text encoders and vision encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.adapters.base_model import plain_folder
from vembed.model.backbones.layers import load_layers
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.towers import TextTower, pooled_width
from vembed.model.backbones.vision import (
    EXPONENT_NAME,
    IMAGE_TENSORS,
    VisionTower,
    load_vision_tower,
    vision_sentence_files,
)
from vembed.model.base import BaseEmbeddingModel, disable_kv_cache
from vembed.model.folder.find import JsonFiles, ModelFolders, read_table
from vembed.model.folder.sentence_transformers import modules_folder
from vembed.model.network.parameters import Part
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec


class TextModel(BaseEmbeddingModel):
    """A BERT-like text encoder with the pooling that its checkpoint was trained with."""

    parts: ClassVar[Mapping[str, Part]] = {"text_tower.": "text"}

    def __init__(self, spec: ModelSpec, tower: TextTower) -> None:
        super().__init__(spec)
        self.text_tower = tower

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "TextModel":
        """The text encoder in `folders.text`."""
        return cls(spec, load_text_tower(_path(folders.text), spec, settings))

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.text_tower.width

    def towers(self) -> dict[Tower, nn.Module]:
        """The text model."""
        return {"text": self.text_tower.model}

    def backbones(self) -> dict[str, Backbone]:
        """The text model, at the root of a checkpoint."""
        return {"": self.text_tower.model}

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor, pooled_tokens: Tensor | None = None) -> Tensor:
        """[texts, tokens] each -> [texts, dim]; pooled_tokens: bool, the tokens that are pooled, None for all."""
        features: Tensor = self.text_tower(input_ids, attention_mask, pooled_tokens)
        return features

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The weights of the layers that follow the pooling, by their subfolder."""
        return self.text_tower.layers_after.states()


class VisionModel(BaseEmbeddingModel):
    """A vision encoder: ViT, DINO, MAE, SigLIP's and CLIP's vision towers, ConvNeXt, Swin, or any timm model."""

    parts: ClassVar[Mapping[str, Part]] = {EXPONENT_NAME: "heads", "vision_tower.": "vision"}
    image_tensors: ClassVar[tuple[str, ...]] = IMAGE_TENSORS

    def __init__(self, spec: ModelSpec, tower: VisionTower) -> None:
        super().__init__(spec, has_new_heads=tower.exponent is not None)
        self.vision_tower = tower

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "VisionModel":
        """The vision encoder in `folders.image`."""
        return cls(spec, load_vision_tower(_path(folders.image), spec, settings))

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.vision_tower.width

    def towers(self) -> dict[Tower, nn.Module]:
        """The vision network."""
        return {"vision": self.vision_tower.network}

    def backbones(self) -> dict[str, Backbone]:
        """The vision model, at the root of a checkpoint."""
        return {"": self.vision_tower.model}

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """The tensors of images -> [images, dim]."""
        features: Tensor = self.vision_tower(images)
        return features

    def fixed_towers(self) -> tuple[Tower, ...]:
        """As of any model, but none with a trainable gem exponent, which stands within the features."""
        return () if self.vision_tower.exponent is not None else super().fixed_towers()

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """As of any model, but with the vision tower's pooling in sentence-transformers' terms."""
        return vision_sentence_files(self.vision_tower, self.spec)


def load_text_tower(folder: Path, spec: ModelSpec, settings: ModelSettings) -> TextTower:
    """The text model in `folder` with the spec's pooling and layers. Raises ModelError for a pooling that it lacks."""
    pooling = spec.pooling["text"]
    loader = encoder_loader(plain_folder(folder, settings))
    backbone = load_backbone(folder, settings, needs_pooler=pooling == "pooler", loader=loader)
    disable_kv_cache(backbone)
    if pooling == "pooler" and getattr(backbone, "pooler", None) is None:
        raise ModelError(
            f"pooling pooler: a {backbone.config.model_type} model has no pooling of its own; use mean or cls"
        )
    layers = load_layers(spec.layers, modules_folder(folder), pooled_width(backbone.config, pooling), settings)
    return TextTower(backbone, pooling, layers, left_padded=spec.padding_side == "left")


def encoder_loader(folder: Path) -> Any:  # Any: transformers is untyped here
    """The transformers class that loads a text encoder: AutoModel, or of a T5 the class of its encoder alone."""
    config: dict[str, Any] = read_table(folder / "config.json") or {}
    encoders = {
        "mt5": transformers.MT5EncoderModel,
        "t5": transformers.T5EncoderModel,
        "umt5": transformers.UMT5EncoderModel,
    }
    return encoders.get(str(config.get("model_type")), transformers.AutoModel)


def _path(folder: Path | None) -> Path:
    assert folder is not None
    return folder
