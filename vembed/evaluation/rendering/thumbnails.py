"""Pictures small enough to lie inside a report."""

import base64
import io
import sys

import PIL.Image

from vembed.data.images import read_image
from vembed.types import ImageSource

_SIDE_PIXELS = 128


def thumbnail_uri(source: ImageSource) -> str:
    """The picture as a data: URI, at most 128 pixels wide and high, PNG or JPEG, whichever is smaller.

    It was encoded by a model before, so its size was checked then. Raises DataError when it cannot be read any more.
    """
    image = read_image(source, max_pixels=sys.maxsize)
    image.thumbnail((_SIDE_PIXELS, _SIDE_PIXELS), PIL.Image.Resampling.LANCZOS)
    options = [("png", _encoded(image, "PNG", optimize=True)), ("jpeg", _encoded(image, "JPEG", quality=85))]
    kind, data = min(options, key=lambda option: len(option[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: PIL.Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
