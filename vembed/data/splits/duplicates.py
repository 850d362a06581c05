"""Finds image files that hold the same bytes, reading as little as possible.

Files of a size of their own are not read at all; of the rest first the two ends, and only files whose ends agree whole.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from vembed.data.hashing import bytes_hash, image_hash, text_hash
from vembed.errors import DataError
from vembed.types import ImageSource

_END_BYTES = 4096


def file_sizes(paths: Iterable[str]) -> dict[str, int | None]:
    """The bytes of each file; None for what is no file."""
    return {path: file_size(path) for path in dict.fromkeys(paths)}


def file_size(path: str) -> int | None:
    """The bytes of the file; None for what is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 (once a row, and pathlib is slow)
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def file_content_keys(paths: Iterable[str], sizes: Mapping[str, int | None] | None = None) -> dict[str, int]:
    """A key per path, equal exactly for files of equal content. A file that cannot be read has a key of its own.

    Keys do not change when all the files move together: what is not read is known by its place below their folder.
    sizes: what `file_sizes` gave, where that is known.
    """
    keys = {path: text_hash(place) for path, place in _relative_paths(list(paths)).items()}
    known = file_sizes(keys) if sizes is None else sizes
    for same_size in _with_equal([path for path in keys if known[path] is not None], lambda path: known[path]):
        for same_ends in _with_equal(same_size, _ends_key):
            keys.update((path, file_key(path)) for path in same_ends)
    return keys


def _relative_paths(paths: Sequence[str]) -> dict[str, str]:
    """The paths relative to the folder that holds them all."""
    whole = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100 - as text: it may be no path at all
    try:
        folder = os.path.commonpath(whole.values())
    except ValueError:  # there are none, or they are on several drives
        return whole
    return {path: Path(absolute).relative_to(folder).as_posix() for path, absolute in whole.items()}


def _with_equal(paths: Sequence[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """The paths that share their key with another one, a list for each key."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        found[key(path)].append(path)
    return [same for same in found.values() if len(same) > 1]


def _ends_key(path: str) -> Hashable:
    try:
        with Path(path).open("rb") as file:
            head = file.read(_END_BYTES)
            file.seek(max(len(head), file.seek(0, 2) - _END_BYTES))
            return bytes_hash(head + file.read())
    except (OSError, ValueError):
        return path


def file_key(path: str) -> int:
    """The key of all of a file's bytes; one of its own for a file that cannot be read."""
    try:
        return image_hash(ImageSource(path=path))
    except DataError:
        return text_hash(path)
