"""Pictures to uint8 at the model's size, and later, on the device, to the floats that the model was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import timm
import torch
import transformers
from torch import Tensor
from torchvision.transforms.v2 import functional

from vembed.errors import ModelError

_MOST_SCALED_PIXELS = 100_000_000
_CONVNEXT_SQUARE_PIXELS = 384  # its processor cuts out the middle below


class ImageReader(Protocol):
    """An image processor in two halves: resizing (host, per picture) and normalisation (device, per chunk).

    Together they give the same floats as the image processor itself.

    read: one RGB picture to named tensors, `pixel_values` among them in uint8. finish: those tensors of several images
    [images, ...] to their float32 pixels.
    """

    def read(self, image: PIL.Image.Image) -> Mapping[str, Tensor]: ...

    def finish(self, images: Mapping[str, Tensor]) -> Tensor: ...

    def save(self, folder: Path) -> None: ...


class TransformersImages:
    """A transformers image processor in two halves: its resizing and cropping in uint8, its normalisation later."""

    def __init__(self, processor: Any, image_size: int | None) -> None:  # Any: transformers is untyped here
        if image_size is not None:
            _set_size(processor, image_size)
        shortest = dict(processor.size).keys() == {"shortest_edge"} and not _is_convnext(processor)
        if processor.do_resize is False or (shortest and not _crops(processor)):
            raise ModelError("this model's image processor keeps the shape of a picture; set image_size")
        self._processor = processor
        self._scaled_edge = _scaled_edge(processor)

    def read(self, image: PIL.Image.Image) -> Mapping[str, Tensor]:
        """RGB picture -> uint8 `pixel_values` [3, height, width]."""
        if self._scaled_edge is not None:
            _refuse_elongated(image, self._scaled_edge)
        output = self._processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels: Tensor = output["pixel_values"][0]
        assert pixels.dtype == torch.uint8
        return {"pixel_values": pixels}

    def finish(self, images: Mapping[str, Tensor]) -> Tensor:
        """uint8 `pixel_values` [images, 3, height, width] -> float32 of the same shape."""
        return normalized(self._processor, images["pixel_values"])

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json."""
        self._processor.save_pretrained(folder)


class TimmImages:
    """timm's evaluation transform up to its conversion to floats, which is done here.

    The transformers processor of timm models offers no uint8 output, so its transform is taken apart: the steps before
    ToTensor run per picture, dividing by 255 and normalising per chunk.
    """

    def __init__(self, processor: Any, image_size: int | None) -> None:  # Any: transformers is untyped here
        config = dict(processor.data_config)
        if image_size is not None:
            config["input_size"] = (3, image_size, image_size)
        steps = timm.data.create_transform(**config, is_training=False).transforms
        kinds = [type(step).__name__ for step in steps]
        if kinds[-2:] not in (["MaybeToTensor", "Normalize"], ["ToTensor", "Normalize"]):
            raise ModelError(f"timm's transform ends in {kinds[-2:]}, which is not supported")
        self._steps = steps[:-2]
        self._mean = torch.as_tensor(steps[-1].mean).flatten()
        self._std = torch.as_tensor(steps[-1].std).flatten()

    def read(self, image: PIL.Image.Image) -> Mapping[str, Tensor]:
        """RGB picture -> uint8 `pixel_values` [3, height, width]."""
        for step in self._steps:
            if isinstance(size := getattr(step, "size", None), int):  # of the shorter edge; of both, it is a pair
                _refuse_elongated(image, size)
            image = step(image)
        return {"pixel_values": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()}

    def finish(self, images: Mapping[str, Tensor]) -> Tensor:
        """uint8 `pixel_values` [images, 3, height, width] -> float32 of the same shape."""

        pixels = images["pixel_values"].float().div(255)
        floats: Tensor = functional.normalize(pixels, self._mean.tolist(), self._std.tolist())
        return floats

    def save(self, folder: Path) -> None:
        """Nothing: config.json holds what describes the transform."""


def normalized(processor: Any, pixels: Tensor) -> Tensor:  # Any: transformers is untyped here
    """uint8 pixels [images, 3, ...] as a transformers image processor rescales and normalises them, in float32."""
    own = processor
    floats: Tensor = own.rescale_and_normalize(
        pixels,
        own.do_rescale,
        own.rescale_factor,
        own.do_normalize,
        _hashable(own.image_mean),
        _hashable(own.image_std),
    )
    return floats.float()


def _set_size(processor: Any, image_size: int) -> None:
    """Set the size of square images; a center crop keeps its share of the picture."""
    square = {"height": image_size, "width": image_size}
    size = dict(processor.size)
    if _is_convnext(processor):
        processor.size = type(processor.size)(shortest_edge=image_size)
    elif "shortest_edge" in size and _crops(processor):
        old = dict(processor.crop_size)["height"]
        processor.size = type(processor.size)(shortest_edge=round(size["shortest_edge"] * image_size / old))
        processor.crop_size = type(processor.crop_size)(**square)
    else:
        processor.size = type(processor.size)(**square)
        processor.do_center_crop = False


def _scaled_edge(processor: Any) -> int | None:  # Any: transformers is untyped here
    """Pixels of a picture's shorter edge before its middle is cut out; None where pictures are scaled to a square."""
    edge: int | None = dict(processor.size).get("shortest_edge")
    is_square = edge is not None and _is_convnext(processor) and edge >= _CONVNEXT_SQUARE_PIXELS
    return None if is_square else edge


def _refuse_elongated(image: PIL.Image.Image, shortest_edge: int) -> None:
    """Raise ValueError for a picture that is enlarged too much before its middle is cut out, such as one of 1 x 60,000.

    By its proportions alone: it may be of few pixels itself, and would take gigabytes.
    """
    scaled = shortest_edge**2 * max(image.size) // min(image.size)
    if scaled > _MOST_SCALED_PIXELS:
        raise ValueError(
            f"of {image.width} x {image.height}, it would have {scaled:,} pixels when its shorter edge is scaled to"
            f" {shortest_edge}; at most {_MOST_SCALED_PIXELS:,} are made"
        )


def _is_convnext(processor: Any) -> bool:
    """True for ConvNeXt's processor, which crops by itself, by a crop_pct below 384 pixels."""
    return isinstance(processor, transformers.ConvNextImageProcessor | transformers.ConvNextImageProcessorPil)


def _crops(processor: Any) -> bool:
    return bool(getattr(processor, "do_center_crop", False))


def _hashable(values: Any) -> Any:  # transformers caches by these values, so they must hash
    return tuple(values) if isinstance(values, list) else values
