"""The vision tower: a transformers vision model with its pooling, images -> [images, width].

Only the patches are pooled by mean, max and gem: CLS, registers and a distillation token stand apart. `cls+mean` puts
CLS and the mean of the patches side by side, as DINOv2's authors do. `gem` is the generalised mean (Radenovic et al.,
2017) with an exponent that learns. `own` is what the model's code calls its pooled output.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.adapters.base_model import plain_folder
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.towers import fitted, interpolation, refuse_odd_size, refuse_unreadable_size
from vembed.model.families.vision import VISION
from vembed.model.folder.find import HEADS_FILE, JsonFiles, read_json
from vembed.model.folder.sentence_transformers import sentence_files
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec, Pooling
from vembed.model.vectors.image_tokens import LeadingTokens, leading_tokens
from vembed.model.vectors.pooling import GEM_EXPONENT, pool

IMAGE_TENSORS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
EXPONENT = "vision_tower.exponent"
_CHANNELS = 3
_TOKENS_NDIM = 3  # [images, tokens, width]
_OWN = ("own", "pooler")
_POOLINGS = ("cls", "mean", "max", "gem")
_PROBE_SIDE = 224  # of an image for a network whose configuration names no size: a convolutional one
# Classes that hold more than AutoModel opens, and must be saved whole.
_WHOLE = ("CLIPVisionModelWithProjection", "ViTMAEForPreTraining")


class VisionTower(nn.Module):
    """A vision model whose patch vectors are pooled, or that pools itself (`own`, `pooler`)."""

    def __init__(self, model: Backbone, pooling: Pooling) -> None:
        super().__init__()
        self.model = prefer_channels_last(model)
        self.pooling = pooling
        self.leading = _leading(model)
        _refuse_pooling(model.config.model_type, pooling, self.leading)
        self.exponent = nn.Parameter(torch.tensor([GEM_EXPONENT])) if "gem" in pooling.split("+") else None
        with torch.no_grad():
            output = run_vision(self.network, black_image(model))
            self.width = int(self._vectors(output, None).shape[-1])
        self.gives_maps = output.last_hidden_state.ndim > _TOKENS_NDIM

    @property
    def network(self) -> Any:  # Any: transformers is untyped here
        """The part of the model that reads images."""
        return _network(self.model)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """`pixel_values` [images, 3, height, width], NaFlex's patches with their tensors -> [images, tower width]."""
        return self._vectors(run_vision(self.network, images), images.get("pixel_attention_mask"))

    def _vectors(self, output: Any, mask: Tensor | None) -> Tensor:  # Any: transformers is untyped here
        """The pooled vectors [images, tower width]; mask: which patches are real [images, patches]."""
        if self.pooling in _OWN:
            return self._own_output(output)
        hidden = self._tokens(output.last_hidden_state)
        whole = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        real = whole if mask is None else mask.to(whole)
        return torch.cat([self._pooled(hidden, real, mode) for mode in self.pooling.split("+")], dim=-1)

    def _pooled(self, hidden: Tensor, real: Tensor, mode: str) -> Tensor:
        if mode == "cls":
            return pool(hidden, real, mode)
        first = self.leading.count
        return pool(hidden[:, first:], real[:, first:], mode, exponent=self.exponent)

    def _own_output(self, output: Any) -> Tensor:  # Any: transformers is untyped here
        pooled: Tensor | None = output.get("image_embeds", output.get("pooler_output"))
        if pooled is None:
            raise ModelError(
                f"pooling {self.pooling!r}: a {self.model.config.model_type} model pools nothing by itself; use"
                f" {_able(self.leading)}"
            )
        return pooled

    def _tokens(self, hidden: Tensor) -> Tensor:
        """Feature maps as tokens: [images, tokens, width], from [images, width, height, width] or channels last."""
        if hidden.ndim == _TOKENS_NDIM:
            return hidden
        network = getattr(self.model, "timm_model", None)
        channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        return hidden.flatten(1, 2) if channels_last else hidden.flatten(2).transpose(1, 2)


def load_vision_tower(folder: Path, spec: ModelSpec, settings: ModelSettings) -> VisionTower:
    """The vision model in `folder`, pooled as the spec says, for images of the spec's size."""
    pooling = spec.pooling["vision"]
    backbone = load_backbone(folder, settings, needs_pooler=pooling in _OWN, loader=_loader(folder, settings))
    config = backbone.config
    refuse_odd_size(config, spec.image_size)
    if config.model_type == "timm_wrapper":
        fit_timm(backbone, spec.image_size)
    if config.model_type == "vit_mae":
        _unmask(backbone)
    refuse_unreadable_size(lambda pixels: run_vision(_network(backbone), {"pixel_values": pixels}), spec.image_size)
    tower = VisionTower(backbone, pooling)
    if pooling != VISION.architectures[config.model_type].pooling:
        _freeze_unused(tower)
    if tower.exponent is not None:
        _restore_exponent(tower.exponent, folder)
    return tower


def vision_sentence_files(tower: VisionTower, spec: ModelSpec) -> JsonFiles:
    """The JSON files by which sentence-transformers opens a vision model, or refuses to.

    It pools all tokens alike and knows no gem: a pooling of patches is written under a name of its own, so that opening
    the folder there fails rather than gives another vector.
    """
    modes = [tower.pooling] if tower.pooling in _OWN else tower.pooling.split("+")
    as_there = {"cls", *_OWN} | ({"mean", "max"} if not (tower.leading.count or tower.gives_maps) else set())
    names = [mode if mode in as_there else mode if mode == "gem" else f"patch_{mode}" for mode in modes]
    known = spec.model_copy(update={"pooling": {"vision": "+".join(names)}})
    files = sentence_files(known, tower.width // len(modes))
    if tower.pooling in _OWN and type(tower.model).__name__ == "CLIPVisionModelWithProjection":
        # AutoModel, by which that opens, leaves the projection out: this makes embedding fail.
        files["sentence_bert_config.json"]["modality_config"]["image"]["method_output_name"] = "image_embeds"
    if tower.model.config.model_type == "vit_mae":
        # A folder of adapters alone has no config.json: there the configuration is the base's, which masks.
        files["sentence_bert_config.json"]["config_args"] = {"mask_ratio": 0.0}
    return files


def prefer_channels_last(model: Backbone) -> Backbone:
    """Lay a convolutional network's weights out channels last, which convolutions are faster with; same values.

    A vision transformer's one convolution cuts patches and gains nothing.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return model.to(memory_format=torch.channels_last) if len(convolutions) > 1 else model


def run_vision(network: Backbone, images: Mapping[str, Tensor]) -> Any:  # Any: transformers is untyped
    """What a vision network gives for normalised images of any size that it can read.

    `pixel_values` [images, 3, height, width]; NaFlex: [images, patches, numbers], with which of them are real and
    their grids.
    """
    config, pixel_values = network.config, fitted(images["pixel_values"], network)
    others = {name: tensor.to(pixel_values.device) for name, tensor in images.items() if name != "pixel_values"}
    inputs: dict[str, Any] = {"pixel_values": pixel_values, **others}
    if config.model_type == "vit_mae":
        inputs["noise"] = _patch_order(pixel_values, config.patch_size)
    return network(**inputs, **interpolation(network.forward, config, pixel_values))


def black_image(model: Backbone) -> dict[str, Tensor]:
    """The tensors of one image of the size that a vision model was made for."""
    config = model.config
    if config.model_type == "siglip2_vision_model":
        numbers = _CHANNELS * config.patch_size**2
        mask, grid = torch.ones(1, 4, dtype=torch.int32), torch.tensor([[2, 2]])
        return dict(zip(IMAGE_TENSORS, (torch.zeros(1, 4, numbers), mask, grid), strict=True))
    if config.model_type == "timm_wrapper":
        return {"pixel_values": torch.zeros(1, *config.pretrained_cfg["input_size"])}
    size = getattr(config, "image_size", None) or _PROBE_SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.zeros(1, _CHANNELS, height, width)}


def fit_timm(model: Backbone, image_size: int | None) -> None:
    """Make a timm model and its configuration take images of that side; position embeddings are resampled."""
    config = model.config
    if image_size is None or list(config.pretrained_cfg["input_size"][1:]) == [image_size, image_size]:
        return
    network = model.timm_model
    config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [3, image_size, image_size]}
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=image_size)
        config.model_args = {**(config.model_args or {}), "img_size": image_size}


def _loader(folder: Path, settings: ModelSettings) -> Any:  # Any: transformers is untyped
    """The class that opens all weights of a folder: AutoModel, unless that leaves some of them out."""
    config = read_json(plain_folder(folder, settings) / "config.json") or {}
    named = (config.get("architectures") or [""])[0]
    return getattr(transformers, named) if named in _WHOLE else transformers.AutoModel


def _network(model: Backbone) -> Backbone:
    """The part of a model that reads images: an MAE has a decoder beside it, which takes no part."""
    return model.vit if type(model).__name__ == "ViTMAEForPreTraining" else model


def _unmask(model: Backbone) -> None:
    """Make an MAE see the whole image, also where other libraries open its checkpoint; its decoder does not learn."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.mask_ratio = 0.0
    used = {id(parameter) for parameter in _network(model).parameters()}
    for parameter in model.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _patch_order(pixel_values: Tensor, patch_size: int) -> Tensor:
    """What an MAE sorts its patches by [images, patches]: their own order, where it would shuffle them."""
    num_patches = (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)
    return torch.arange(num_patches, device=pixel_values.device).expand(len(pixel_values), -1)


def _leading(model: Backbone) -> LeadingTokens:
    if model.config.model_type != "timm_wrapper":
        return leading_tokens(model.config.to_dict())
    has_cls = getattr(model.timm_model, "cls_token", None) is not None
    return LeadingTokens(has_cls, int(getattr(model.timm_model, "num_prefix_tokens", 0)) - has_cls)


def _refuse_pooling(model_type: str, pooling: Pooling, leading: LeadingTokens) -> None:
    modes = pooling.split("+")
    if pooling in _OWN:
        return
    if not set(modes) <= set(_POOLINGS):
        raise ModelError(f"pooling {pooling!r}: images are pooled by {_able(leading)}")
    if "cls" in modes and not leading.cls:
        raise ModelError(f"pooling {pooling!r}: this {model_type} model has no CLS token; use {_able(leading)}")


def _able(leading: LeadingTokens) -> str:
    return "cls, cls+mean, mean, max, gem or own" if leading.cls else "mean, max, gem or own"


def _freeze_unused(tower: VisionTower) -> None:
    """Parameters that take no part in the pooled vector do not learn, so that their gradient is never missing."""
    learning = [parameter for parameter in tower.model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        total = tower(black_image(tower.model)).sum()
    for parameter, gradient in zip(learning, torch.autograd.grad(total, learning, allow_unused=True), strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _restore_exponent(exponent: nn.Parameter, folder: Path) -> None:
    """Take the exponent of a checkpoint of ours, whose tower may become a part of another model."""
    path = folder / HEADS_FILE
    state = load_file(path) if path.is_file() else {}
    if EXPONENT in state:
        with torch.no_grad():
            exponent.copy_(state[EXPONENT])
