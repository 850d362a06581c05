"""Items from a user's values: texts, image files, PIL images, and pairs of text and image."""

import os
from collections.abc import Mapping
from pathlib import Path

import PIL.Image

from vembed.errors import DataError
from vembed.types import ImageSource, Item

Picture = str | os.PathLike[str] | bytes | PIL.Image.Image
Embeddable = str | os.PathLike[str] | bytes | PIL.Image.Image | Mapping[str, object] | Item


def image_source(picture: object) -> ImageSource:
    """An image file's path, its bytes, or a picture. Raises DataError for anything else.

    >>> image_source("cat.png").path
    'cat.png'
    """
    if isinstance(picture, ImageSource):
        return picture
    if isinstance(picture, PIL.Image.Image):
        return ImageSource(pil=picture)
    if isinstance(picture, bytes):
        return ImageSource(data=picture)
    if isinstance(picture, str | Path | os.PathLike):
        path = os.fspath(picture)
        return ImageSource(path=path)
    raise DataError(f"an image is a path, bytes or a PIL image, not {type(picture).__name__}")


def as_item(value: object) -> Item:
    """One item. A str is a text, never a path; a Path, bytes or PIL image is an image; a dict has `text`, `image`.

    >>> as_item("a/b.png").text
    'a/b.png'
    >>> len(as_item({"text": "a cat", "image": ["1.png", "2.png"]}).images)
    2
    """
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return Item(text=value)
    if not isinstance(value, Mapping):
        return Item(images=(image_source(value),))
    unknown = [str(key) for key in value if key not in ("text", "image")]
    if unknown:
        raise DataError(f"an item's keys are `text` and `image`, not {', '.join(map(repr, unknown))}")
    text, image = value.get("text"), value.get("image")
    if text is not None and not isinstance(text, str):
        raise DataError(f"a text is a str, not {type(text).__name__}")
    images = image if isinstance(image, list | tuple) else [] if image is None else [image]
    return Item(text=text, images=tuple(image_source(picture) for picture in images))
