"""Random augmentation of training images, as a pure function of (seed, epoch, row, slot): resuming draws the same.

Translation, rotation, scale, brightness, contrast and saturation. Images are never mirrored: text, arrows and "left of"
would then no longer match their captions.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

import PIL.Image

from vembed.data.hashing import mixed_hash
from vembed.types import ImageTransform

Strength = Literal["light", "strong"]


_MID_GREY = 127.5
_GREY_SHARES = (0.299, 0.587, 0.114)  # of red, green and blue in the brightness that one sees (ITU-R 601)


@dataclass(frozen=True)
class _Widest:
    """The strongest augmentation: degrees of rotation, share of a side shifted, and how far factors may be from 1."""

    degrees: float
    shift: float
    scale: float
    colour: float


_RANGES = {
    "light": _Widest(degrees=8, shift=0.05, scale=0.1, colour=0.1),
    "strong": _Widest(degrees=20, shift=0.1, scale=0.25, colour=0.3),
}


@dataclass(frozen=True)
class ImageAugmentation:
    """One drawn augmentation: rotation counter-clockwise, shifts as shares of width and height, factors (1: as is)."""

    degrees: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """The changed RGB picture, of the same size; what comes into view has the mean colour of the corners."""
        moved = image.transform(
            image.size,
            PIL.Image.Transform.AFFINE,
            self._matrix(*image.size),
            resample=PIL.Image.Resampling.BILINEAR,
            fillcolor=_corner_colour(image),
        )
        return moved.convert("RGB", self._colour_matrix())

    def _matrix(self, width: int, height: int) -> tuple[float, float, float, float, float, float]:
        """The affine matrix (a, b, c, d, e, f) that maps a new pixel to the old picture's, about the middle."""
        angle = math.radians(self.degrees)
        cos, sin = math.cos(angle) / self.scale, math.sin(angle) / self.scale
        middle_x, middle_y = width / 2, height / 2
        new_x, new_y = middle_x + self.shift[0] * width, middle_y + self.shift[1] * height
        return (cos, -sin, middle_x - cos * new_x + sin * new_y, sin, cos, middle_y - sin * new_x - cos * new_y)

    def _colour_matrix(self) -> tuple[float, ...]:
        """Three rows of four: saturation about the colour's grey, contrast about mid-grey, brightness about black."""
        gain = self.brightness * self.contrast
        offset = self.brightness * (1 - self.contrast) * _MID_GREY
        rows: list[float] = []
        for channel in range(3):
            rows += [gain * (1 - self.saturation) * share for share in _GREY_SHARES]
            rows[-3 + channel] += gain * self.saturation
            rows.append(offset)
        return tuple(rows)


def image_transform(strength: Strength, seed: int, epoch: int, *, row: int | str, slot: int) -> ImageTransform:
    """The augmentation that slot `slot` (0 the query, then documents) of row `row` gets in this epoch."""
    widest = _RANGES[strength]
    draw = random.Random(mixed_hash("augment", strength, seed, epoch, row, slot))
    return ImageAugmentation(
        degrees=draw.uniform(-widest.degrees, widest.degrees),
        shift=(draw.uniform(-widest.shift, widest.shift), draw.uniform(-widest.shift, widest.shift)),
        scale=math.exp(draw.uniform(-1, 1) * math.log1p(widest.scale)),
        brightness=1 + draw.uniform(-widest.colour, widest.colour),
        contrast=1 + draw.uniform(-widest.colour, widest.colour),
        saturation=1 + draw.uniform(-widest.colour, widest.colour),
    )


def _corner_colour(image: PIL.Image.Image) -> tuple[int, ...]:
    right, bottom = image.width - 1, image.height - 1
    corners = [image.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    return tuple(sum(channel) // 4 for channel in zip(*corners, strict=True))
