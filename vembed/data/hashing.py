"""Stable 63-bit keys of texts, pictures and items: equal content, equal key, on any machine and in any process.

Keys are never negative, so that -1 can mean "none" wherever keys are stored.
"""

import functools
import hashlib
from pathlib import Path, PurePath

from vembed.data.images import read_bytes
from vembed.errors import DataError
from vembed.types import ImageSource, Item

_MASK = (1 << 63) - 1


def bytes_hash(data: bytes) -> int:
    """A key of the bytes, in [0, 2**63).

    >>> bytes_hash(b"a") == bytes_hash(b"a"), bytes_hash(b"a") == bytes_hash(b"b")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") & _MASK


def text_hash(text: str) -> int:
    """A key of the text exactly as it is written (lone surrogates included)."""
    return bytes_hash(text.encode("utf-8", "surrogatepass"))


def mixed_hash(*parts: int | str) -> int:
    """A key of several numbers and strings in order.

    >>> mixed_hash(1, 23) == mixed_hash(12, 3)
    False
    """
    return text_hash(repr(parts))


def row_name(origin: str) -> str:
    """The name from which a row's random draws are seeded: its file's name and line, wherever the file lies.

    >>> row_name("data/emoji/train.jsonl:17")
    'train.jsonl:17'
    """
    return PurePath(origin).name


def image_hash(source: ImageSource) -> int:
    """A key of the encoded bytes (of the pixels for a PIL image), remembered per file and modification time."""
    if source.path is not None and source.data is None and source.pil is None:
        try:
            stat = Path(source.path).stat()
        except (OSError, ValueError):
            return bytes_hash(read_bytes(source))  # which says what is wrong with the file
        try:
            return _file_hash(source.path, stat.st_mtime_ns, stat.st_size)
        except DataError as error:
            raise DataError(f"{source.origin}: {error}" if source.origin else str(error)) from error
    return bytes_hash(read_bytes(source))


def content_hash(item: Item) -> int:
    """A key of the item's text and pictures; where they come from does not matter."""
    if item.text is not None and not item.images:
        return text_hash("t" + item.text)
    parts = [image_hash(source) for source in item.images]
    return mixed_hash("i", *parts) if item.text is None else mixed_hash("m", item.text, *parts)


@functools.lru_cache(maxsize=1 << 17)
def _file_hash(path: str, modified: int, size: int) -> int:
    return bytes_hash(read_bytes(ImageSource(path=path)))
