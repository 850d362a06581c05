"""The text tower: a transformers text model with its pooling; and helpers for the pixels of vision towers."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vembed.errors import ModelError, UsageError
from vembed.model.backbones.layers import VectorLayers
from vembed.model.backbones.pretrained import Backbone
from vembed.model.folder.sentence_layers import width_after
from vembed.model.spec import Pooling
from vembed.model.vectors.pooling import pool
from vembed.utils.untrusted import library_errors


class TextTower(nn.Module):
    """A text model whose token vectors are pooled, and the layers that follow the pooling.

    left_padded: position_ids then count from each text's first real token.
    """

    def __init__(
        self, model: Backbone, pooling: Pooling, layers: VectorLayers | None = None, *, left_padded: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.left_padded = left_padded
        self.layers_after = layers if layers is not None else VectorLayers()
        self.width = width_after(pooled_width(model.config, pooling), self.layers_after.specs, Path())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pooled_tokens: Tensor | None = None) -> Tensor:
        """[texts, tokens] each -> [texts, width].

        pooled_tokens: bool, the tokens that are pooled (without a prompt's, say); None for all real ones.
        """
        positions = {"position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0)} if self.left_padded else {}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **positions)
        real = attention_mask.bool()
        if self.pooling == "pooler":
            pooled = _not_none(output.pooler_output)
        else:
            read = real if pooled_tokens is None else pooled_tokens
            pooled = pool(output.last_hidden_state, read, self.pooling, real=real)
        vectors: Tensor = self.layers_after(pooled)
        return vectors


def pooled_width(config: Any, pooling: Pooling) -> int:  # Any: transformers is untyped
    """The width of a text model's pooled vectors."""
    return int(config.hidden_size) * len(pooling.split("+"))


def interpolation_options(
    call: Any, config: Any, pixel_values: Tensor
) -> dict[str, bool]:  # Any: transformers is untyped
    """`interpolate_pos_encoding` for images of another size than the model's; {} for its own, or if not supported."""
    size = getattr(config, "image_size", None)
    own = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if own == tuple(pixel_values.shape[-2:]) or "interpolate_pos_encoding" not in inspect.signature(call).parameters:
        return {}
    return {"interpolate_pos_encoding": True}


def to_weights_of(pixel_values: Tensor, model: nn.Module) -> Tensor:
    """The pixels on the device and in the dtype of a model's weights.

    Raises UsageError for integers: these are not normalised yet, and would embed as another picture.
    """
    if not pixel_values.is_floating_point():
        raise UsageError(
            f"pixel_values are {pixel_values.dtype}, not normalised yet; give the model what `finish` of its processor"
            " makes of the inputs"
        )
    weights = next(model.parameters())
    return pixel_values.to(weights.device, weights.dtype)


def refuse_size_between_patches(config: Any, image_size: int | None) -> None:
    """Raise ModelError if the image size is no multiple of the patch size."""
    patch = getattr(config, "patch_size", None)
    if image_size is None or not isinstance(patch, int) or image_size % patch == 0:
        return
    below = image_size - image_size % patch
    near = f"{below} or {below + patch}" if below else str(patch)
    raise ModelError(f"image_size {image_size} is no multiple of the model's patch size {patch}; use {near}")


def refuse_unreadable_size(tower: Callable[[Tensor], Tensor], image_size: int | None) -> None:
    """Raise ModelError if the tower cannot read images of that size; tries one black image."""
    if image_size is None:
        return
    with library_errors(ModelError, f"image_size {image_size}: the model cannot read it"), torch.no_grad():
        tower(torch.zeros(1, 3, image_size, image_size))


def _not_none(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
