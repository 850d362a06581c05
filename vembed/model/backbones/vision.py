"""The vision tower: a transformers vision model with its pooling, images -> [images, width].

mean, max and gem pool the patch tokens only, without prefix tokens (CLS, registers, distillation). `cls+mean`
concatenates CLS and the mean of the patches, as DINOv2's authors do. `gem` is the generalised mean (Radenovic et al.,
2017) with a trainable exponent. `own` is the pooled output of the model's own code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from vembed.errors import CheckpointError, ModelError
from vembed.model.adapters.base_model import plain_folder
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.towers import (
    interpolation_options,
    refuse_size_between_patches,
    refuse_unreadable_size,
    to_weights_of,
)
from vembed.model.families.vision import VISION
from vembed.model.folder.find import HEADS_FILE, JsonFiles, read_table
from vembed.model.folder.sentence_transformers import sentence_files
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec, Pooling
from vembed.model.vectors.pooling import GEM_EXPONENT, pool
from vembed.model.vectors.prefix_tokens import PrefixTokens, prefix_tokens
from vembed.utils.untrusted import library_errors

IMAGE_TENSORS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
EXPONENT_NAME = "vision_tower.exponent"
_CHANNELS = 3
_TOKENS_NDIM = 3  # [images, tokens, width]
_MODEL_POOLINGS = ("own", "pooler")
_POOLINGS = ("cls", "mean", "max", "gem")
_MAX_SIDE = 8192
_PROBE_SIDE = 224  # of an image for a network whose config names no size: a convolutional one
# Classes with weights that AutoModel would not load: CLIP's projection, MAE's decoder.
_NOT_BY_AUTO_MODEL = ("CLIPVisionModelWithProjection", "ViTMAEForPreTraining")


class VisionTower(nn.Module):
    """A vision model with pooling over its tokens, or with its own pooled output (`own`, `pooler`)."""

    def __init__(self, model: Backbone, pooling: Pooling) -> None:
        super().__init__()
        self.model = prefer_channels_last(model)
        self.pooling = pooling
        self.prefix_tokens = _prefix_tokens_of(model)
        _refuse_pooling(model.config.model_type, pooling, self.prefix_tokens)
        self.exponent = nn.Parameter(torch.tensor([GEM_EXPONENT])) if "gem" in pooling.split("+") else None
        with torch.no_grad():
            output = run_vision(self.network, black_image(model))
            self.width = int(self._pool_output(output, None).shape[-1])
        self.has_feature_maps = output.last_hidden_state.ndim > _TOKENS_NDIM

    @property
    def network(self) -> Any:  # Any: transformers is untyped here
        """The model's encoder, which reads images."""
        return _network(self.model)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """`pixel_values` [images, 3, height, width], NaFlex's patches with their tensors -> [images, tower width]."""
        return self._pool_output(run_vision(self.network, images), images.get("pixel_attention_mask"))

    def _pool_output(self, output: Any, mask: Tensor | None) -> Tensor:  # Any: transformers is untyped here
        """Pooled vectors [images, tower width]. mask: [images, patches], 0 for padding; None if all are real."""
        if self.pooling in _MODEL_POOLINGS:
            return self._model_output(output)
        hidden = self._tokens(output.last_hidden_state)
        every = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        real = every if mask is None else mask.to(every)
        return torch.cat([self._pool_tokens(hidden, real, mode) for mode in self.pooling.split("+")], dim=-1)

    def _pool_tokens(self, hidden: Tensor, real: Tensor, mode: str) -> Tensor:
        if mode == "cls":
            return pool(hidden, real, mode)
        first = self.prefix_tokens.count
        return pool(hidden[:, first:], real[:, first:], mode, exponent=self.exponent)

    def _model_output(self, output: Any) -> Tensor:  # Any: transformers is untyped here
        pooled: Tensor | None = output.get("image_embeds", output.get("pooler_output"))
        if pooled is None:
            raise ModelError(
                f"pooling {self.pooling!r}: a {self.model.config.model_type} model pools nothing by itself; use"
                f" {_possible_poolings(self.prefix_tokens)}"
            )
        return pooled

    def _tokens(self, hidden: Tensor) -> Tensor:
        """Tokens [images, tokens, channels]; of feature maps [images, channels, height, width], or channels last."""
        if hidden.ndim == _TOKENS_NDIM:
            return hidden
        network = getattr(self.model, "timm_model", None)
        channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        return hidden.flatten(1, 2) if channels_last else hidden.flatten(2).transpose(1, 2)


def load_vision_tower(folder: Path, spec: ModelSpec, settings: ModelSettings) -> VisionTower:
    """The vision model in `folder` with the spec's pooling and image size. Raises ModelError for what it cannot do."""
    pooling = spec.pooling["vision"]
    backbone = load_backbone(
        folder, settings, needs_pooler=pooling in _MODEL_POOLINGS, loader=_model_class(folder, settings)
    )
    config = backbone.config
    refuse_size_between_patches(config, spec.image_size)
    if config.model_type == "timm_wrapper":
        set_timm_image_size(backbone, spec.image_size)
    if config.model_type == "vit_mae":
        _disable_masking(backbone)
    refuse_unreadable_size(lambda pixels: run_vision(_network(backbone), {"pixel_values": pixels}), spec.image_size)
    tower = VisionTower(backbone, pooling)
    if pooling != VISION.architectures[config.model_type].pooling:
        _freeze_unused_parameters(tower)
    if tower.exponent is not None:
        _restore_exponent(tower.exponent, folder)
    return tower


def vision_sentence_files(tower: VisionTower, spec: ModelSpec) -> JsonFiles:
    """The JSON files with which sentence-transformers opens a vision model, or fails to.

    It pools all tokens and has no gem: a pooling over patches only is written under a name that it does not have, so
    that opening the folder there fails instead of giving another vector.
    """
    modes = [tower.pooling] if tower.pooling in _MODEL_POOLINGS else tower.pooling.split("+")
    supported = {"cls", *_MODEL_POOLINGS} | (
        {"mean", "max"} if not (tower.prefix_tokens.count or tower.has_feature_maps) else set()
    )
    names = [mode if mode in supported or mode == "gem" else f"patch_{mode}" for mode in modes]
    known = spec.model_copy(update={"pooling": {"vision": "+".join(names)}})
    files = sentence_files(known, tower.width // len(modes))
    if tower.pooling in _MODEL_POOLINGS and type(tower.model).__name__ == "CLIPVisionModelWithProjection":
        # AutoModel, which sentence-transformers loads, leaves the projection out: this makes embedding fail there.
        files["sentence_bert_config.json"]["modality_config"]["image"]["method_output_name"] = "image_embeds"
    if tower.model.config.model_type == "vit_mae":
        # A folder with adapters only has no config.json; the base's has a mask_ratio above 0.
        files["sentence_bert_config.json"]["config_args"] = {"mask_ratio": 0.0}
    return files


def prefer_channels_last(model: Backbone) -> Backbone:
    """Convert a convolutional network to the channels-last memory format, which is faster; same values.

    A vision transformer has one convolution, for its patches, and gains nothing.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return model.to(memory_format=torch.channels_last) if len(convolutions) > 1 else model


def run_vision(network: Backbone, images: Mapping[str, Tensor]) -> Any:  # Any: transformers is untyped
    """A vision network's transformers output for normalised images of any size that it supports.

    `pixel_values` [images, 3, height, width]; NaFlex: [images, patches, numbers], with `pixel_attention_mask` and
    `spatial_shapes`.
    """
    config, pixel_values = network.config, to_weights_of(images["pixel_values"], network)
    others = {name: tensor.to(pixel_values.device) for name, tensor in images.items() if name != "pixel_values"}
    inputs: dict[str, Any] = {"pixel_values": pixel_values, **others}
    if config.model_type == "vit_mae":
        inputs["noise"] = _masking_noise(pixel_values, config.patch_size)
    return network(**inputs, **interpolation_options(network.forward, config, pixel_values))


def black_image(model: Backbone) -> dict[str, Tensor]:
    """The input tensors of one black image of the size in a vision model's config."""
    config = model.config
    if config.model_type == "siglip2_vision_model":
        numbers = _CHANNELS * config.patch_size**2
        mask, grid = torch.ones(1, 4, dtype=torch.int32), torch.tensor([[2, 2]])
        return dict(zip(IMAGE_TENSORS, (torch.zeros(1, 4, numbers), mask, grid), strict=True))
    if config.model_type == "timm_wrapper":
        return {"pixel_values": torch.zeros(1, *config.pretrained_cfg["input_size"])}
    size = getattr(config, "image_size", None) or _PROBE_SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if not 0 < max(height, width) <= _MAX_SIDE:
        raise ModelError(f"config.json says image_size: {size}; expected 1 to {_MAX_SIDE} pixels")
    return {"pixel_values": torch.zeros(1, _CHANNELS, height, width)}


def set_timm_image_size(model: Backbone, image_size: int | None) -> None:
    """Set the input size of a timm model and its config; position embeddings are resampled."""
    config = model.config
    if image_size is None or list(config.pretrained_cfg["input_size"][1:]) == [image_size, image_size]:
        return
    network = model.timm_model
    config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [3, image_size, image_size]}
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=image_size)
        config.model_args = {**(config.model_args or {}), "img_size": image_size}


def _model_class(folder: Path, settings: ModelSettings) -> Any:  # Any: transformers is untyped
    """The transformers class that loads all weights of a folder: AutoModel, unless that would leave some out."""
    config = read_table(plain_folder(folder, settings) / "config.json") or {}
    named = (config.get("architectures") or [""])[0]
    return getattr(transformers, named) if named in _NOT_BY_AUTO_MODEL else transformers.AutoModel


def _network(model: Backbone) -> Backbone:
    """The encoder of a vision model: all of it, or an MAE without its decoder."""
    return model.vit if type(model).__name__ == "ViTMAEForPreTraining" else model


def _disable_masking(model: Backbone) -> None:
    """Set an MAE's mask_ratio to 0, in its saved config too, and freeze its decoder."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.mask_ratio = 0.0
    used = {id(parameter) for parameter in _network(model).parameters()}
    for parameter in model.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _masking_noise(pixel_values: Tensor, patch_size: int) -> Tensor:
    """The `noise` that keeps an MAE's patches in order instead of shuffling them, [images, patches]."""
    num_patches = (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)
    return torch.arange(num_patches, device=pixel_values.device).expand(len(pixel_values), -1)


def _prefix_tokens_of(model: Backbone) -> PrefixTokens:
    if model.config.model_type != "timm_wrapper":
        return prefix_tokens(model.config.to_dict())
    has_cls = getattr(model.timm_model, "cls_token", None) is not None
    return PrefixTokens(has_cls, int(getattr(model.timm_model, "num_prefix_tokens", 0)) - has_cls)


def _refuse_pooling(model_type: str, pooling: Pooling, prefix: PrefixTokens) -> None:
    modes = pooling.split("+")
    if pooling in _MODEL_POOLINGS:
        return
    if not set(modes) <= set(_POOLINGS):
        raise ModelError(f"pooling {pooling!r}: images are pooled by {_possible_poolings(prefix)}")
    if "cls" in modes and not prefix.cls:
        raise ModelError(
            f"pooling {pooling!r}: this {model_type} model has no CLS token; use {_possible_poolings(prefix)}"
        )


def _possible_poolings(prefix: PrefixTokens) -> str:
    return "cls, cls+mean, mean, max, gem or own" if prefix.cls else "mean, max, gem or own"


def _freeze_unused_parameters(tower: VisionTower) -> None:
    """Freeze parameters that the pooled vector does not depend on, so that no trainable one is without a gradient."""
    trainable = [parameter for parameter in tower.model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        total = tower(black_image(tower.model)).sum()
    for parameter, gradient in zip(trainable, torch.autograd.grad(total, trainable, allow_unused=True), strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _restore_exponent(exponent: nn.Parameter, folder: Path) -> None:
    """Load the gem exponent of a vembed checkpoint, whose tower may be loaded into a composed model."""
    path = folder / HEADS_FILE
    if not path.is_file():
        return
    with library_errors(CheckpointError, f"{path} is broken or of another model"), torch.no_grad():
        state = load_file(path)
        if EXPONENT_NAME in state:
            exponent.copy_(state[EXPONENT_NAME])
