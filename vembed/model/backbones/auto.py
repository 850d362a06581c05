"""Models that are one transformers model: text encoders, vision encoders, and dual encoders such as CLIP and SigLIP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vembed.model.backbones.layers import load_layers
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.towers import (
    TextTower,
    VisionTower,
    fit_timm,
    fitted,
    interpolation,
    pooled_width,
    refuse_odd_size,
    refuse_unreadable_size,
    run_vision,
)
from vembed.model.base import BaseEmbeddingModel, disable_kv_cache
from vembed.model.files import ModelFolders
from vembed.model.parameters import Part
from vembed.model.sentence_folder import modules_folder
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
        """[texts, tokens] each -> [texts, dim]."""
        features: Tensor = self.text_tower(input_ids, attention_mask, pooled_tokens)
        return features

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The weights of the layers that follow the pooling, by their subfolder."""
        return self.text_tower.layers_after.states()


class VisionModel(BaseEmbeddingModel):
    """A vision encoder: ViT, DINOv2, or any timm model."""

    parts: ClassVar[Mapping[str, Part]] = {"vision_tower.": "vision"}

    def __init__(self, spec: ModelSpec, tower: VisionTower) -> None:
        super().__init__(spec)
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
        """The vision model."""
        return {"vision": self.vision_tower.model}

    def backbones(self) -> dict[str, Backbone]:
        """The vision model, at the root of a checkpoint."""
        return {"": self.vision_tower.model}

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """`pixel_values` [images, 3, height, width] -> [images, dim]."""
        features: Tensor = self.vision_tower(images["pixel_values"])
        return features


class DualModel(BaseEmbeddingModel):
    """A text and an image tower that were trained together: CLIP, SigLIP. Projections belong to their tower."""

    parts: ClassVar[Mapping[str, Part]] = {"backbone.text": "text", "backbone.vis": "vision"}

    def __init__(self, spec: ModelSpec, backbone: Backbone) -> None:
        super().__init__(spec)
        self.backbone = backbone
        self._adopt_scale(backbone)
        self._dim = _dual_width(backbone.config)

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "DualModel":
        """The dual encoder in `folders.text` (which is also `folders.image`)."""
        backbone = load_backbone(_path(folders.text), settings)
        refuse_odd_size(backbone.config.vision_config, spec.image_size)
        model = cls(spec, backbone)
        refuse_unreadable_size(lambda pixels: model.embed_images({"pixel_values": pixels}), spec.image_size)
        return model

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._dim

    def towers(self) -> dict[Tower, nn.Module]:
        """Both networks, without CLIP's projections."""
        return {"text": self.backbone.text_model, "vision": self.backbone.vision_model}

    def backbones(self) -> dict[str, Backbone]:
        """The dual encoder, at the root of a checkpoint."""
        return {"": self.backbone}

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[texts, tokens] twice -> [texts, dim]."""
        output = self.backbone.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        features: Tensor = output.pooler_output
        return features

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """`pixel_values` [images, 3, height, width] -> [images, dim]."""
        call, config = self.backbone.get_image_features, self.backbone.config.vision_config
        pixel_values = fitted(images["pixel_values"], self.backbone.vision_model)
        features: Tensor = call(pixel_values=pixel_values, **interpolation(call, config, pixel_values)).pooler_output
        return features

    def backbone_state(self, subfolder: str) -> dict[str, Tensor]:
        """The dual encoder's weights, its logit scale and bias among them."""
        state = super().backbone_state(subfolder)
        state["logit_scale"] = self.logit_scale.detach().reshape(self._scale_shape)
        if self.logit_bias is not None:
            state["logit_bias"] = self.logit_bias.detach()
        return state

    def _adopt_scale(self, backbone: Backbone) -> None:
        """Move the checkpoint's logit scale and bias here, as [1]; the backbone's own forward is never called."""
        self._scale_shape = backbone.logit_scale.shape  # () in CLIP, [1] in SigLIP
        with torch.no_grad():
            self.logit_scale.copy_(backbone.logit_scale.reshape(1))
        del backbone.logit_scale
        if getattr(backbone, "logit_bias", None) is not None:
            self.logit_bias = nn.Parameter(backbone.logit_bias.detach().reshape(1).clone())
            del backbone.logit_bias
        self.has_own_scale = True


def load_text_tower(folder: Path, spec: ModelSpec, settings: ModelSettings) -> TextTower:
    """The text model in `folder`, pooled as the spec says."""
    pooling = spec.pooling["text"]
    backbone = load_backbone(folder, settings, needs_pooler=pooling == "pooler")
    disable_kv_cache(backbone)
    layers = load_layers(spec.layers, modules_folder(folder), pooled_width(backbone.config, pooling))
    return TextTower(backbone, pooling, layers)


def load_vision_tower(folder: Path, spec: ModelSpec, settings: ModelSettings) -> VisionTower:
    """The vision model in `folder`, pooled as the spec says, for images of the spec's size."""
    pooling = spec.pooling["vision"]
    backbone = load_backbone(folder, settings, needs_pooler=pooling == "pooler")
    refuse_odd_size(backbone.config, spec.image_size)
    if backbone.config.model_type == "timm_wrapper":
        fit_timm(backbone, spec.image_size)
    refuse_unreadable_size(lambda pixels: run_vision(backbone, pixels), spec.image_size)
    return VisionTower(backbone, pooling)


def _dual_width(config: Any) -> int:  # Any: transformers is untyped here
    own = getattr(config, "projection_dim", None)
    return int(own if own is not None else config.vision_config.hidden_size)


def _path(folder: Path | None) -> Path:
    assert folder is not None
    return folder
