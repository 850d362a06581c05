"""Pillow's decoders, of which only those that pictures of data need are let near a file.

Pillow opens every format that it knows, whatever a file is called. Its reader of EPS starts Ghostscript, those of WMF,
BUFR, GRIB and HDF5 hand the file to whatever was registered for it, ICO and ICNS hold pictures of a size that their
header does not tell, and PSD, PCX, TGA, FLI, DDS and the like are read by code that hardly anyone uses or attacks.
"""

import io
import threading
import warnings
from contextlib import ExitStack
from types import TracebackType

import PIL.Image
import PIL.ImageFile

# HEIF is there where a plugin registers it, as pillow_heif does. An MPO is opened as the JPEG that it begins with, a
# DIB is a BMP without its first bytes.
READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "JPEG2000", "HEIF")
# What files of these formats are called, where the name is all there is to go by. Not .pfm, a PPM of floats: those have
# no known range, and are refused.
IMAGE_ENDINGS = frozenset(
    """.apng .avif .avifs .bmp .dib .gif .heic .heics .heif .heifs .hif .j2c .j2k .jfif .jif .jp2 .jpc .jpe .jpeg .jpf
    .jpg .jpx .mpo .pbm .pgm .pjp .pjpeg .png .pnm .ppm .tif .tiff .webp""".split()
)
_OPEN_LOCK = threading.Lock()


def open_picture(data: bytes) -> PIL.Image.Image:
    """The picture, opened by its header. Pillow's own pixel limit, a process-wide global, is lifted meanwhile.

    Raises PIL.UnidentifiedImageError for bytes of no format of ours, and whatever else a decoder raises.
    """
    PIL.Image.init()  # which is quick but for the first time
    formats = [name for name in READ_FORMATS if name in PIL.Image.OPEN]
    with _OPEN_LOCK:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(io.BytesIO(data), formats=formats)
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def foreign_format(picture: PIL.Image.Image) -> str | None:
    """The format of a picture that somebody opened, if it is none of ours: its decoder runs when it is loaded.

    >>> foreign_format(PIL.Image.new("RGB", (2, 2))) is None
    True
    """
    is_file = isinstance(picture, PIL.ImageFile.ImageFile)
    return picture.format if is_file and picture.format not in (*READ_FORMATS, "MPO") else None


class _ShownWarnings:
    """While any thread is inside, what Pillow warns of is shown even where warnings are errors (`-W error`).

    It warns of metadata that it passes over; the picture is as good as without `-W error`. Filters belong to the whole
    process, so the first thread to enter adds one and the last to leave takes it away.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._changes = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._num_inside += 1
            if self._num_inside == 1 and any(entry[0] == "error" for entry in warnings.filters):
                self._changes.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("default", module=r"PIL\.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._changes.close()


shown_warnings = _ShownWarnings()
