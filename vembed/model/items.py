"""Items from a user's values: texts, image files, PIL images, and pairs of text and image."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image

from vembed.errors import DataError
from vembed.types import ImageSource, Item

Picture = str | os.PathLike[str] | bytes | PIL.Image.Image
Embeddable = str | os.PathLike[str] | bytes | PIL.Image.Image | Mapping[str, object] | Item


def image_source(picture: object, origin: str = "") -> ImageSource:
    """An image file's path, its bytes, or a picture. Raises DataError for anything else.

    origin: what messages call it.

    >>> image_source("cat.png").path
    'cat.png'
    """
    if isinstance(picture, ImageSource):
        return picture
    if isinstance(picture, PIL.Image.Image):
        return ImageSource(pil=picture, origin=origin)
    if isinstance(picture, bytes):
        return ImageSource(data=picture, origin=origin)
    if isinstance(picture, str | Path | os.PathLike):
        return ImageSource(path=os.fsdecode(picture), origin=origin)
    raise DataError(f"{_where(origin)}an image is a path, bytes or a PIL image, not {type(picture).__name__}")


def as_item(value: object, origin: str = "") -> Item:
    """One item. A str is a text, never a path; a Path, bytes or PIL image is an image; a dict has `text`, `image`.

    origin: what messages call it.

    >>> as_item("a/b.png").text
    'a/b.png'
    >>> len(as_item({"text": "a cat", "image": ["1.png", "2.png"]}).images)
    2
    """
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return Item(text=value, origin=origin)
    if not isinstance(value, Mapping):
        return Item(images=(image_source(value, origin),), origin=origin)
    unknown = [str(key) for key in value if key not in ("text", "image")]
    if unknown:
        raise DataError(f"{_where(origin)}an item's keys are `text` and `image`, not {', '.join(map(repr, unknown))}")
    text, image = value.get("text"), value.get("image")
    if text is not None and not isinstance(text, str):
        raise DataError(f"{_where(origin)}a text is a str, not {type(text).__name__}")
    images = image if isinstance(image, list | tuple) else [] if image is None else [image]
    return Item(text, tuple(image_source(picture, origin) for picture in images), origin)


def numbered(values: Sequence[object]) -> Iterator[tuple[object, str]]:
    """The values with their names for messages: "item 3", counted from 0; a single one needs none."""
    for number, value in enumerate(values):
        yield value, f"item {number}" if len(values) > 1 else ""


def _where(origin: str) -> str:
    return f"{origin}: " if origin else ""
