"""A file of data while a run reads it: that it is an ordinary file, and that it is still the one that was opened."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vembed.errors import DataError


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
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is no regular file, but a folder, a pipe or a device")
        return cls.of_status(status)

    @classmethod
    def of_status(cls, status: os.stat_result) -> "FileIdentity":
        """The identity in what the system says of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def check(self, path: str) -> None:
        """Raise DataError when there is another file at `path` now, or this one was written to."""
        if FileIdentity.of(path) != self:
            raise DataError(f"{path}: the file was replaced or written to while it is read; start again")
