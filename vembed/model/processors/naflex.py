"""Images of any aspect ratio as patches (SigLIP 2 NaFlex): uint8 on the host, normalised floats on the device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from vembed.model.processors.pictures import normalized

_CHANNELS = 3


class NaflexImages:
    """Siglip2ImageProcessor in two halves: its resizing and patches in uint8, its normalisation later."""

    def __init__(self, processor: Any, max_num_patches: int) -> None:  # Any: transformers is untyped here
        processor.max_num_patches = max_num_patches
        self._processor = processor

    def read(self, image: PIL.Image.Image) -> Mapping[str, Tensor]:
        """RGB picture -> uint8 `pixel_values` [patches, numbers], their mask [patches] and grid [2]."""
        output = self._processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")
        assert output["pixel_values"].dtype == torch.uint8
        return {name: output[name][0] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}

    def finish(self, images: Mapping[str, Tensor]) -> Tensor:
        """uint8 `pixel_values` [images, patches, numbers] -> float32 of the same shape, with padding 0."""
        patches = images["pixel_values"]
        # Not -1 for the pixels: a chunk may have no images. [images, channels, patches, pixels]
        channels = patches.reshape(*patches.shape[:2], patches.shape[2] // _CHANNELS, _CHANNELS).movedim(-1, 1)
        pixels = normalized(self._processor, channels).movedim(1, -1).flatten(2)
        return pixels.masked_fill(images["pixel_attention_mask"].unsqueeze(-1) == 0, 0.0)

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json."""
        self._processor.save_pretrained(folder)
