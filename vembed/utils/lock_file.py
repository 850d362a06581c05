"""The file of a lock: the system's lock on it, the process that it names, and its heartbeat."""

import errno
import json
import os
import re
import socket
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from vembed.errors import VembedError
from vembed.utils.untrusted import library_errors, open_regular, printable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_MOST_BYTES = 4096
_LOCKED_BYTE = 2**30  # on Windows, where a locked byte cannot be read: beyond the owner's name
_TOKEN = re.compile("[0-9a-f]{32}")
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class Owner:
    """The process that has a lock. machine: one running kernel, which knows the locks of all of its processes."""

    host: str
    process: int
    started: str
    machine: str
    token: str

    @classmethod
    def here(cls) -> "Owner":
        """This process, with a token of its own for each lock."""
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), started, _machine(), uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.process} on host {printable(self.host)}, started {printable(self.started)},"


def create_lock_file(file: Path) -> int:
    """A new file, open. Raises FileExistsError in all processes but one."""
    return open_regular(file, os.O_RDWR | _NOFOLLOW | os.O_CREAT | os.O_EXCL)


def open_lock_file(file: Path) -> tuple[int, bool]:
    """The file, open, and whether this made it. Raises OSError, also for a link or a pipe of its name."""
    try:
        return create_lock_file(file), True
    except FileExistsError:
        return open_regular(file, os.O_RDWR | _NOFOLLOW), False


def system_lock(descriptor: int) -> bool | None:
    """Take the system's lock: True when it is ours, False when it is another process's, None where there are none."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def write_owner(descriptor: int, owner: Owner) -> None:
    """Write whose the file is, over what it said before; that is its first heartbeat, too."""
    text = json.dumps(asdict(owner), indent=2).encode() + b"\n"
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    while text:
        text = text[os.write(descriptor, text) :]
    os.fsync(descriptor)


def read_owner(file: Path) -> Owner | None:
    """The owner that the file names; None when it is gone, or says none."""
    try:
        descriptor = open_regular(file, os.O_RDONLY | _NOFOLLOW)
    except OSError:
        return None
    try:
        return owner_in(descriptor)
    finally:
        os.close(descriptor)


def owner_in(descriptor: int) -> Owner | None:
    """The owner that an open file names; None for half of one, or anything else."""
    return _parsed(_content(descriptor))


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, _MOST_BYTES)


def _parsed(content: bytes) -> Owner | None:
    with suppress(VembedError), library_errors(VembedError, "no owner"):
        owner = Owner(**json.loads(content.decode("utf-8")))
        is_text = all(isinstance(text, str) for text in (owner.host, owner.started, owner.machine))
        if is_text and isinstance(owner.process, int) and _TOKEN.fullmatch(owner.token):
            return owner
    return None


def is_in_place(descriptor: int, file: Path) -> bool:
    """True if the open file is the one of this name, which a process that ended may have deleted."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except FileNotFoundError:
        return False


def heartbeat_age(descriptor: int, folder: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system, which may be another machine's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"now")
            probe.flush()
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:  # a full disk
        now = time.time()
    return now - os.fstat(descriptor).st_mtime


def touch(descriptor: int, file: Path) -> None:
    """Renew the heartbeat, by the clock of the file system. Raises OSError."""
    os.utime(descriptor if os.utime in os.supports_fd else file)


@cache
def _machine() -> str:
    """A name of the running kernel: that of its boot where there is one, which containers share, else the host's."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()
