"""A file of data while a run reads it: an ordinary file, and still the one that was opened."""

import mmap
import os
import stat
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.errors import DataError
from vembed.utils.untrusted import open_regular

_SECONDS_BETWEEN_LOOKS = 0.01


@dataclass(frozen=True)
class FileIdentity:
    """What tells a file from every other one, and from itself after it was written to."""

    device: int
    number: int
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: str) -> "FileIdentity":
        """The identity of the file now at `path`. Raises DataError when it cannot be asked, or is no regular file."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the file cannot be read: {error}") from error
        return cls.of_status(status, path)

    @classmethod
    def of_status(cls, status: os.stat_result, path: str) -> "FileIdentity":
        """The identity in what the system says of a file. Raises DataError when it is no regular file."""
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is no regular file, but a folder, a pipe or a device")
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def check(self, path: str) -> None:
        """Raise DataError when there is another file at `path` now, or this one was written to."""
        if FileIdentity.of(path) != self:
            raise _changed(path)


class SourceFile:
    """An open file and its bytes, mapped. A file of the same name that takes its place changes nothing here.

    Picklable: another process opens the file of that name, and refuses it if it is another one. Raises DataError when
    the file is empty or cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._descriptor = open_regular(path)
            weakref.finalize(self, os.close, self._descriptor)
            self._identity = FileIdentity.of_status(os.fstat(self._descriptor), path)
            if self._identity.num_bytes == 0:
                raise DataError(f"{path}: the file is empty")
            self.map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the file cannot be read: {error}") from error
        self._next_look = 0.0

    def text(self, start: int, end: int) -> str:
        """The bytes from `start` to before `end`, which are UTF-8. Raises DataError when the file was written to.

        The system is asked for that a hundred times a second at most: asking takes as long as reading a row.
        """
        now = time.monotonic()
        if now >= self._next_look:
            if FileIdentity.of_status(os.fstat(self._descriptor), self.path) != self._identity:
                raise _changed(self.path)
            self._next_look = now + _SECONDS_BETWEEN_LOOKS
        return self.map[start:end].decode()

    def __reduce__(self) -> tuple[Any, ...]:  # Any: pickle's own protocol
        return _opened_again, (self.path, self._identity)


def _opened_again(path: str, identity: FileIdentity) -> SourceFile:
    identity.check(path)
    return SourceFile(path)


def _changed(path: str) -> DataError:
    return DataError(f"{path}: the file was replaced or written to while it is read; start again")
