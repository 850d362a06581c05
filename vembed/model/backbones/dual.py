"""Dual encoders: CLIP and its variants, SigLIP, SigLIP 2, and CLIP models with remote code."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.towers import (
    interpolation_options,
    refuse_size_between_patches,
    refuse_unreadable_size,
    to_weights_of,
)
from vembed.model.base import BaseEmbeddingModel
from vembed.model.folder.find import JsonFiles, ModelFolders
from vembed.model.network.parameters import Part
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec

_SCALE_NAMES = ("logit_scale", "logit_bias")
# The methods that give features: transformers' names, and those of EVA-CLIP's remote code.
_TEXT_METHODS = ("get_text_features", "encode_text")
_IMAGE_METHODS = ("get_image_features", "encode_image")


class DualModel(BaseEmbeddingModel):
    """A text and an image tower that were trained together. Projections belong to their tower.

    Remote code is supported if its model has `text_model`, `vision_model`, `get_text_features` (or `encode_text`) and
    `get_image_features` (or `encode_image`), which return features, or an output with features in `pooler_output`.
    """

    parts: ClassVar[Mapping[str, Part]] = {"backbone.text": "text", "backbone.vis": "vision"}
    image_tensors: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

    def __init__(self, spec: ModelSpec, backbone: Backbone) -> None:
        super().__init__(spec)
        self.backbone = backbone
        self._take_over_logit_scale(backbone)
        self._text_method, self._image_method = (
            _first_method(backbone, _TEXT_METHODS),
            _first_method(backbone, _IMAGE_METHODS),
        )
        self._gives_plain_features = False
        self._dim = _width(backbone.config) if spec.own_code is None else self._probe_width()

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "DualModel":
        """The dual encoder in `folders.text` (which is also `folders.image`)."""
        assert folders.text is not None
        backbone = load_backbone(folders.text, settings)
        _refuse_unusable_class(backbone)
        refuse_size_between_patches(_vision_config(backbone), spec.image_size)
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
        call = getattr(self.backbone, self._text_method)
        return _features(call(input_ids=input_ids, attention_mask=attention_mask))

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """`pixel_values` [images, 3, height, width] -> [images, dim].

        NaFlex: `pixel_values` [images, patches, numbers], `pixel_attention_mask` [images, patches] and
        `spatial_shapes` [images, 2].
        """
        call, config = getattr(self.backbone, self._image_method), _vision_config(self.backbone)
        images = {**images, "pixel_values": to_weights_of(images["pixel_values"], self.backbone.vision_model)}
        return _features(call(**images, **interpolation_options(call, config, images["pixel_values"])))

    def backbone_state(self, subfolder: str) -> dict[str, Tensor]:
        """The dual encoder's weights, its logit scale and bias among them."""
        state = super().backbone_state(subfolder)
        for name, shape in self._scale_shapes.items():
            state[name] = getattr(self, name).detach().reshape(shape)
        return state

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """As of any model, with the names of a remote code's methods, and whether they return plain features."""
        files = super().sentence_files(subfolder)
        methods = files["sentence_bert_config.json"]["modality_config"]
        for modality, call in (("text", self._text_method), ("image", self._image_method)):
            output = None if self._gives_plain_features else "pooler_output"
            methods[modality] = {"method": call, "method_output_name": output}
        return files

    @torch.no_grad()
    def _probe_width(self) -> int:
        """The width of a remote code's features, by running it on one token; notes whether it returns plain tensors."""
        token = torch.zeros(1, 1, dtype=torch.int64)
        output = getattr(self.backbone, self._text_method)(input_ids=token, attention_mask=torch.ones_like(token))
        self._gives_plain_features = isinstance(output, Tensor)
        return int(_features(output).shape[-1])

    def _take_over_logit_scale(self, backbone: Backbone) -> None:
        """Move the backbone's logit scale and bias to this model, as [1]; the backbone's forward is never called."""
        own = {name: parameter for name, parameter in backbone.named_parameters(recurse=False) if name in _SCALE_NAMES}
        self._scale_shapes = {name: parameter.shape for name, parameter in own.items()}  # () in CLIP, [1] in SigLIP
        for name, parameter in own.items():
            setattr(self, name, nn.Parameter(parameter.detach().reshape(1).float().clone()))
            delattr(backbone, name)
        self.has_own_scale = "logit_scale" in own


def _features(output: Any) -> Tensor:  # Any: transformers is untyped here
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _first_method(backbone: Backbone, calls: tuple[str, ...]) -> str:
    """The first of these names that is a method of the model."""
    return next(name for name in calls if hasattr(backbone, name))


def _vision_config(backbone: Backbone) -> Any:  # Any: transformers is untyped here
    return getattr(backbone.config, "vision_config", backbone.config)


def _width(config: Any) -> int:  # Any: transformers is untyped here
    own = getattr(config, "projection_dim", None)
    return int(own if own is not None else config.vision_config.hidden_size)


def _refuse_unusable_class(backbone: Backbone) -> None:
    """Raise ModelError for a remote code's class that lacks the methods used here, or has a parameter in no tower."""
    needed = (("text_model",), ("vision_model",), _TEXT_METHODS, _IMAGE_METHODS)
    lacking = [" or ".join(names) for names in needed if not any(hasattr(backbone, name) for name in names)]
    if lacking:
        raise ModelError(
            f"{type(backbone).__name__} cannot be used as a dual encoder: it has no {', '.join(lacking)}; write a"
            " family for it (docs/add-a-model.md)"
        )
    known = tuple(name.removeprefix("backbone.") for name in DualModel.parts)
    other = [name for name, _ in backbone.named_parameters() if name not in _SCALE_NAMES and not name.startswith(known)]
    if other:
        raise ModelError(
            f"{type(backbone).__name__} cannot be used as a dual encoder: {other[0]} belongs to neither tower; write a"
            " family for it (docs/add-a-model.md)"
        )
