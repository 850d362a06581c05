"""Pictures of any kind as 8-bit RGB: what a person would see when opening the file, or a `DataError`.

CMYK, palette, 16-bit and transparent pictures (over white), EXIF rotation, and the first frame of an animation are
right as they are. A missing, cut-off or non-image file, and one with more pixels than allowed, are refused.
"""

import os
import stat

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from vembed.data.decoding import READ_FORMATS, foreign_format, open_picture, shown_warnings
from vembed.errors import DataError
from vembed.types import ImageSource
from vembed.utils.untrusted import library_errors, printable, read_regular_file

MAX_FILE_BYTES = 1 << 30  # more than any picture of the pixels that are allowed by default
_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_BROKEN = "the image is cut off or broken"
_SHOWN_LENGTH = 300  # of a name


def read_bytes(source: ImageSource) -> bytes:
    """The encoded bytes of an image; for a PIL image its mode, size and pixels, so equal pictures give equal bytes.

    Raises DataError when the file cannot be read.
    """
    if source.data is not None:
        return source.data
    if source.pil is not None:
        return _pixel_bytes(source)
    if source.path is None:
        raise DataError(f"{place_of(source)}the image has neither a path, nor bytes, nor a picture")
    return _file_bytes(source.path, source)


def encoded_image(source: ImageSource) -> ImageSource:
    """The image with its file's bytes, so that its file is read no more; a PIL image as it is.

    Messages still name the file. Raises DataError when it cannot be read.
    """
    if source.path is None or source.data is not None or source.pil is not None:
        return source
    return ImageSource(data=read_bytes(source), origin=": ".join(part for part in (source.origin, source.path) if part))


def check_file(source: ImageSource) -> int | None:
    """The bytes of the image's file, None for one without. Raises DataError for a path that names no regular file.

    Reads nothing.
    """
    if source.path is None:
        return None
    try:
        status = os.stat(source.path)  # noqa: PTH116 (once a row, and pathlib is slow)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_file(source) from error
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{place_of(source)}the image file cannot be read: it is not a regular file")
    return status.st_size


def read_image(source: ImageSource, *, max_pixels: int) -> PIL.Image.Image:
    """The picture as RGB, upright, transparent parts white, first frame.

    Raises DataError that names the origin when the image is missing, broken, no image, empty, or has over `max_pixels`.
    """
    with shown_warnings:
        image = _given(source.pil, source) if source.pil is not None else _open(read_bytes(source), source)
        _refuse_size(image.size, max_pixels, source)
        with library_errors(DataError, f"{place_of(source)}{_BROKEN}", or_too_large=True):
            upright = PIL.ImageOps.exif_transpose(image)  # a plain copy, which is of no format any more
            return _to_rgb(upright, source, zero_is_white=_zero_is_white(image))


def _file_bytes(path: str, source: ImageSource) -> bytes:
    try:
        return read_regular_file(path, max_bytes=MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_file(source) from error
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: ImageSource, error: Exception) -> DataError:
    """In the words of the error alone: that of the system repeats the path, which may be long."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return DataError(f"{place_of(source)}the image file cannot be read: {words}")


def _no_file(source: ImageSource) -> DataError:
    return DataError(
        f"{place_of(source)}there is no such image file (relative paths start at image_root, which by default is"
        " the folder of the data file)"
    )


def _pixel_bytes(source: ImageSource) -> bytes:
    assert source.pil is not None
    picture = _given(source.pil, source)
    with shown_warnings, library_errors(DataError, f"{place_of(source)}{_BROKEN}", or_too_large=True):
        pixels = picture.tobytes()
        palette = picture.getpalette() if picture.mode in {"P", "PA"} else None
        transparency = picture.info.get("transparency")
        return f"{picture.mode} {picture.size} {palette} {transparency!r}\n".encode() + pixels


def _given(picture: PIL.Image.Image, source: ImageSource) -> PIL.Image.Image:
    """A PIL image from Python, which may be a file whose decoder has not run yet."""
    other = foreign_format(picture)
    if other is not None:
        raise DataError(
            f"{place_of(source)}the picture was opened from a file of format {other}, which is not read here (those"
            f" that are: {', '.join(READ_FORMATS)}); give a copy() of it, if you trust the file"
        )
    return picture


def _open(data: bytes, source: ImageSource) -> PIL.Image.Image:
    with library_errors(DataError, f"{place_of(source)}{_BROKEN}", or_too_large=True):
        try:
            return open_picture(data)
        except PIL.UnidentifiedImageError as error:
            raise DataError(f"{place_of(source)}not an image: {_first_bytes(data)}") from error


def _first_bytes(data: bytes) -> str:
    return f"{len(data)} bytes that start with {data[:16]!r}" if data else "it is empty"


def _refuse_size(size: tuple[int, int], max_pixels: int, source: ImageSource) -> None:
    if 0 in size:
        raise DataError(f"{place_of(source)}the image is empty: it has {size[0]} x {size[1]} pixels")
    if size[0] * size[1] > max_pixels:
        raise DataError(
            f"{place_of(source)}the image has {size[0]} x {size[1]} pixels, over max_image_pixels = {max_pixels}"
        )


def _to_rgb(image: PIL.Image.Image, source: ImageSource, *, zero_is_white: bool) -> PIL.Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(image, source, zero_is_white=zero_is_white)
    if image.mode == "F":
        raise DataError(f"{place_of(source)}float pixels have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture as RGB, what is transparent of it white."""
    white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_sixteen_bit(image: PIL.Image.Image, source: ImageSource, *, zero_is_white: bool) -> PIL.Image.Image:
    """Grey values 0..65535 become 0..255. Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)  # [height, width]
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{place_of(source)}32-bit pixels have no known range; save the image with 8 or 16 bits")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    if zero_is_white:
        values = 65535 - values
    grey = ((values + 128) // 257).astype(np.uint8)
    return PIL.Image.fromarray(grey).convert("RGB")


def _zero_is_white(image: PIL.Image.Image) -> bool:
    """True for a TIFF whose grey values count from white to black. Pillow turns them round at 8 bits, and not at 16."""
    if not isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
        return False
    return image.tag_v2.get(PIL.TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def place_of(source: ImageSource) -> str:
    """Where a message says that the image is: row and path, each followed by a colon; "" where neither is known.

    >>> place_of(ImageSource(path="a.png", origin="train.jsonl:17: positive"))
    'train.jsonl:17: positive: a.png: '
    """
    return "".join(f"{printable(part[:_SHOWN_LENGTH])}: " for part in (source.origin, source.path) if part)
