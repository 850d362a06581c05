"""The text tower: a transformers text model with its pooling, and what towers of both kinds need."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vembed.errors import ModelError, UsageError
from vembed.model.backbones.layers import VectorLayers
from vembed.model.backbones.pretrained import Backbone, first_lines
from vembed.model.folder.sentence_layers import width_after
from vembed.model.spec import Pooling
from vembed.model.vectors.pooling import pool


class TextTower(nn.Module):
    """A text model whose token vectors are pooled, and the layers that follow the pooling.

    left_padded: texts begin behind their padding; their tokens are then numbered from 0, as they are without it.
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

        pooled_tokens: those of the real tokens that the pooling reads, None for all.
        """
        positions = {"position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0)} if self.left_padded else {}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **positions)
        real = attention_mask.bool()
        if self.pooling == "pooler":
            pooled = _tensor(output.pooler_output)
        else:
            read = real if pooled_tokens is None else pooled_tokens
            pooled = pool(output.last_hidden_state, read, self.pooling, real=real)
        vectors: Tensor = self.layers_after(pooled)
        return vectors


def pooled_width(config: Any, pooling: Pooling) -> int:  # Any: transformers is untyped
    """The width of a text model's pooled vectors."""
    return int(config.hidden_size) * len(pooling.split("+"))


def interpolation(call: Any, config: Any, pixel_values: Tensor) -> dict[str, bool]:  # Any: transformers is untyped
    """The option that fits position embeddings to images of another size than the model's own, where it has one."""
    size = getattr(config, "image_size", None)
    own = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if own == tuple(pixel_values.shape[-2:]) or "interpolate_pos_encoding" not in inspect.signature(call).parameters:
        return {}
    return {"interpolate_pos_encoding": True}


def fitted(pixel_values: Tensor, model: nn.Module) -> Tensor:
    """The pixels on the device and in the dtype of a model's weights.

    Raises UsageError for whole numbers: they are a processor's, not normalised yet, and would embed as another picture.
    """
    if not pixel_values.is_floating_point():
        raise UsageError(
            f"pixel_values are {pixel_values.dtype}, not normalised yet; give the model what `finish` of its processor"
            " makes of the inputs"
        )
    weights = next(model.parameters())
    return pixel_values.to(weights.device, weights.dtype)


def refuse_odd_size(config: Any, image_size: int | None) -> None:
    """Raise ModelError when an image of that side would leave a rest beside the patches."""
    patch = getattr(config, "patch_size", None)
    if image_size is None or not isinstance(patch, int) or image_size % patch == 0:
        return
    below = image_size - image_size % patch
    near = f"{below} or {below + patch}" if below else str(patch)
    raise ModelError(f"image_size {image_size} is no multiple of the model's patch size {patch}; use {near}")


def refuse_unreadable_size(tower: Callable[[Tensor], Tensor], image_size: int | None) -> None:
    """Raise ModelError when the tower cannot read images of that side; one black image is tried."""
    if image_size is None:
        return
    try:
        with torch.no_grad():
            tower(torch.zeros(1, 3, image_size, image_size))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"image_size {image_size}: the model cannot read it ({first_lines(error)})") from error


def _tensor(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
