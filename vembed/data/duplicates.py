"""Which image files hold the same bytes, reading as little as possible.

Files of a size of their own are not read at all; of the rest first the two ends, and only files whose ends agree whole.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from vembed.data.hashing import bytes_hash, image_hash, text_hash
from vembed.errors import DataError
from vembed.types import ImageSource

_END_BYTES = 4096


def file_keys(paths: Iterable[str]) -> dict[str, int]:
    """A key per path, equal exactly for files of equal content. A file that cannot be read has a key of its own."""
    keys = {path: text_hash(path) for path in paths}
    for same_size in _classes(list(keys), _size):
        for same_ends in _classes(same_size, _ends):
            keys.update((path, _whole(path)) for path in same_ends)
    return keys


def _classes(paths: Sequence[str], mark: Callable[[str], Hashable]) -> list[list[str]]:
    """The paths with an equal mark, where there are at least two."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        found[mark(path)].append(path)
    return [same for same in found.values() if len(same) > 1]


def _size(path: str) -> Hashable:
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return path


def _ends(path: str) -> Hashable:
    try:
        with Path(path).open("rb") as file:
            head = file.read(_END_BYTES)
            file.seek(max(len(head), file.seek(0, 2) - _END_BYTES))
            return bytes_hash(head + file.read())
    except (OSError, ValueError):
        return path


def _whole(path: str) -> int:
    try:
        return image_hash(ImageSource(path=path))
    except DataError:
        return text_hash(path)
