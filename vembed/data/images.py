"""Pictures of any kind as 8-bit RGB: what a person would see when opening the file, or a `DataError`.

CMYK, palette, 16-bit and transparent pictures (over white), EXIF rotation, and the first frame of an animation are
right as they are. A missing, cut-off or non-image file, and one with more pixels than allowed, are refused.
"""

import binascii
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from vembed.errors import DataError
from vembed.types import ImageSource

# What Pillow's decoders raise on broken files, as found by feeding them cut and flipped bytes.
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError)
_CODEC_ERRORS = (struct.error, zlib.error, binascii.Error, NotImplementedError)
_BROKEN = (*_DECODE_ERRORS, *_CODEC_ERRORS)

_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_OPEN_LOCK = threading.Lock()


def read_bytes(source: ImageSource) -> bytes:
    """The encoded bytes of an image; for a PIL image its mode, size and pixels, so equal pictures give equal bytes.

    Raises DataError when the file cannot be read.
    """
    if source.data is not None:
        return source.data
    if source.pil is not None:
        return _pixel_bytes(source)
    if source.path is None:
        raise DataError(f"{_message_prefix(source)}the image has neither a path, nor bytes, nor a picture")
    return _file_bytes(source.path, source)


def encoded_image(source: ImageSource) -> ImageSource:
    """The image with its file's bytes, so that its file is read no more; a PIL image as it is.

    Messages still name the file. Raises DataError when it cannot be read.
    """
    if source.path is None or source.data is not None or source.pil is not None:
        return source
    return ImageSource(data=read_bytes(source), origin=": ".join(part for part in (source.origin, source.path) if part))


def check_file(source: ImageSource) -> None:
    """Raise DataError when the image is a path that names no file. Reads nothing."""
    if source.path is not None and not Path(source.path).is_file():
        raise _no_file(source)


def read_image(source: ImageSource, *, max_pixels: int) -> PIL.Image.Image:
    """The picture as RGB, upright, transparent parts white, first frame.

    Raises DataError that names the origin when the image is missing, broken, no image, or has over `max_pixels`.
    """
    image = source.pil if source.pil is not None else _open(read_bytes(source), source)
    _refuse_bomb(image.size, max_pixels, source)
    try:
        return _to_rgb(PIL.ImageOps.exif_transpose(image), source)
    except _BROKEN as error:
        raise DataError(f"{_message_prefix(source)}the image is cut off or broken: {error}") from error


def _file_bytes(path: str, source: ImageSource) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise _no_file(source) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{_message_prefix(source)}the image file cannot be read: {error}") from error


def _no_file(source: ImageSource) -> DataError:
    return DataError(
        f"{_message_prefix(source)}there is no such image file (relative paths start at image_root, which by default is"
        " the folder of the data file)"
    )


def _pixel_bytes(source: ImageSource) -> bytes:
    assert source.pil is not None
    try:
        pixels = source.pil.tobytes()
    except _BROKEN as error:
        raise DataError(f"{_message_prefix(source)}the image is cut off or broken: {error}") from error
    palette = source.pil.getpalette() if source.pil.mode in {"P", "PA"} else None
    transparency = source.pil.info.get("transparency")
    return f"{source.pil.mode} {source.pil.size} {palette} {transparency!r}\n".encode() + pixels


def _open(data: bytes, source: ImageSource) -> PIL.Image.Image:
    """Open by header. Pillow's own pixel limit, a process-wide global, is lifted meanwhile: ours decides."""
    with _OPEN_LOCK:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(io.BytesIO(data))
        except PIL.UnidentifiedImageError as error:
            raise DataError(f"{_message_prefix(source)}not an image: {_first_bytes(data)}") from error
        except _BROKEN as error:
            raise DataError(f"{_message_prefix(source)}the image is cut off or broken: {error}") from error
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _first_bytes(data: bytes) -> str:
    return f"{len(data)} bytes that start with {data[:16]!r}" if data else "it is empty"


def _refuse_bomb(size: tuple[int, int], max_pixels: int, source: ImageSource) -> None:
    if size[0] * size[1] > max_pixels:
        raise DataError(
            f"{_message_prefix(source)}the image has {size[0]} x {size[1]} pixels, over max_image_pixels = {max_pixels}"
        )


def _to_rgb(image: PIL.Image.Image, source: ImageSource) -> PIL.Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(image, source)
    if image.mode == "F":
        raise DataError(f"{_message_prefix(source)}float pixels have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture as RGB, what is transparent of it white."""
    white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_sixteen_bit(image: PIL.Image.Image, source: ImageSource) -> PIL.Image.Image:
    """Grey values 0..65535 become 0..255. Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)  # [height, width]
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{_message_prefix(source)}32-bit pixels have no known range; save the image with 8 or 16 bits")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    grey = ((values + 128) // 257).astype(np.uint8)
    return PIL.Image.fromarray(grey).convert("RGB")


def _message_prefix(source: ImageSource) -> str:
    return "".join(f"{part[:300]}: " for part in (source.origin, source.path) if part)
