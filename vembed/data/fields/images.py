"""Cells that hold an image, as image sources: a path, bytes, {"bytes", "path"}, base64 text, or a PIL image."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import PIL.Image

from vembed.data.fields.cells import describe_cell, is_absent
from vembed.errors import DataError
from vembed.types import ImageSource

_URL = re.compile(r"[a-z][a-z0-9+.-]{1,9}://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_MIN_BASE64_LENGTH = 44
_SHOWN_LENGTH = 300  # of a path
# How encoded PNG, JPEG, GIF, WebP (RIFF), BMP, TIFF (both orders) and AVIF/HEIC files start.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class ImageCellParser:
    """Turns a cell into an ImageSource. Relative paths start at `folder`; with `confined` none may lead out of it.

    A text is base64 when it is a data: URI, or when it has only base64's characters (no dot, so no file ending) and
    decodes to the start of an image file; every other text is a path. Nothing is read here.
    """

    folder: str = ""
    confined: bool = False

    def __call__(self, cell: Any, where: str) -> ImageSource:
        """The image in `cell`. Raises DataError when there is none, or for a URL or a path out of the folder."""
        if is_absent(cell):
            raise DataError(f"{where}: the image is missing ({describe_cell(cell)})")
        if isinstance(cell, str):
            return self._from_text(cell, where)
        if isinstance(cell, bytes | bytearray | memoryview):
            return ImageSource(data=bytes(cell), origin=where)
        if isinstance(cell, PIL.Image.Image):
            return ImageSource(pil=cell, origin=where)
        if isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
            return self._from_feature(cell, where)
        raise DataError(f"{where}: should be an image (path, bytes, base64 or picture), but is {describe_cell(cell)}")

    def _from_feature(self, cell: Mapping[str, Any], where: str) -> ImageSource:
        data, path = cell.get("bytes"), cell.get("path")
        if isinstance(data, bytes | bytearray | memoryview) and len(data):
            return ImageSource(data=bytes(data), origin=where)
        if not is_absent(data) and not isinstance(data, bytes | bytearray | memoryview):
            raise DataError(f"{where}: the image's `bytes` should be bytes, but are {describe_cell(data)}")
        if not isinstance(path, str) or not path:
            raise DataError(f"{where}: the image has neither bytes nor a path")
        return self._from_path(path, where)

    def _from_text(self, text: str, where: str) -> ImageSource:
        if text.startswith("data:"):
            return ImageSource(data=_from_data_uri(text, where), origin=where)
        if _URL.match(text):
            raise DataError(f"{where}: {text[:100]} is a URL; download the image first and give its path")
        data = _from_base64(text, where)
        return self._from_path(text, where) if data is None else ImageSource(data=data, origin=where)

    def _from_path(self, path: str, where: str) -> ImageSource:
        full = os.path.join(self.folder, path)  # noqa: PTH118 (this runs once per row, and pathlib is slow)
        if self.confined and not _is_inside(full, self.folder):
            raise DataError(
                f"{where}: {path[:_SHOWN_LENGTH]} leads out of image_root ({self.folder});"
                " allow_paths_outside_image_root: true allows it"
            )
        return ImageSource(path=full, origin=where)


def _is_inside(path: str, folder: str) -> bool:
    """True if `path` is below `folder` once links and `..` are followed."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):  # no file can have this name
        return False
    root = os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def _from_data_uri(text: str, where: str) -> bytes:
    head, separator, body = text.partition(",")
    if not separator or not head.endswith(";base64"):
        raise DataError(f"{where}: a data: URI must read data:image/...;base64,...; this one starts {text[:40]!r}")
    return _decoded(body, where)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: the base64 text is broken: {error}") from error


def _from_base64(text: str, where: str) -> bytes | None:
    """The decoded bytes, or None when the text is no base64 of an image file."""
    if len(text) < _MIN_BASE64_LENGTH or not _BASE64.fullmatch(text) or not _starts_as_image(text):
        return None
    return _decoded(text, where)


def _starts_as_image(text: str) -> bool:
    try:
        head = base64.b64decode("".join(text[:64].split())[:32])
    except (binascii.Error, ValueError):
        return False
    return head.startswith(_SIGNATURES) or head[4:8] == b"ftyp"
