"""The guard around what is read from outside: data, pictures, model folders, run folders, caches.

A library that reads foreign bytes may raise anything at all. It is called inside `library_errors`, which makes an error
of ours of it, with the place that the bytes came from; nothing else in the package catches a library's exceptions one
by one. Files are opened by `open_regular` and read by `read_regular_file`, which neither wait for a pipe nor read a
device.
"""

import os
import stat
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vembed.errors import VembedError

_MESSAGE_LENGTH = 300
_READ_SIZE = 1 << 20
_LEAVING = (KeyboardInterrupt, SystemExit, GeneratorExit, VembedError)
_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format (direction marks), surrogates, line separators
_KEPT = frozenset("\n\t\u200c\u200d")  # the two joiners are part of words and of emoji


@contextmanager
def library_errors(error_type: type[VembedError], what: str, *, or_too_large: bool = False) -> Iterator[None]:
    """Turns whatever a library raises in this block into an `error_type` that reads `{what}: {the library's words}`.

    what: the place and what cannot be done there, such as "train.jsonl:17: the image is cut off or broken".
    or_too_large: whether the bytes say how much memory it takes to read them, so that too little of it is their fault.
    Else memory that runs out passes as it is, as a device's always does, and as errors of ours, our own assertions,
    interrupts and exits do. A panic of a library written in Rust is no `Exception`, and is caught all the same.

    >>> with library_errors(VembedError, "x.json: is no JSON"):
    ...     int("9" * 5000)
    Traceback (most recent call last):
    vembed.errors.VembedError: x.json: is no JSON: Exceeds the limit (4300 digits) for integer string conversion: ...
    """
    try:
        yield
    except _LEAVING:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if (
            _is_of_device_memory(error)
            or _is_own_assertion(error)
            or (isinstance(error, MemoryError) and not or_too_large)
        ):
            raise
        raise error_type(f"{what}: {library_message(error)}") from error


def _is_of_device_memory(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError, by its name: torch takes seconds to import."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _is_own_assertion(error: BaseException) -> bool:
    """True for an `assert` in this package. Libraries have theirs, about what they read."""
    if not isinstance(error, AssertionError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]


def library_message(error: BaseException) -> str:
    """What a library says, short and printable: its first line, or the kind of the error where it says nothing.

    >>> library_message(ValueError("no such page\\nat 0x7f")), library_message(MemoryError())
    ('no such page', 'MemoryError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0][:_MESSAGE_LENGTH]) if lines else type(error).__name__


def read_regular_file(path: str | Path, *, max_bytes: int) -> bytes:
    """The bytes of a regular file. What is asked is the open file, so that it cannot be exchanged in between.

    Raises OSError when it is missing, a folder, a pipe, a socket or a device, or holds more than `max_bytes`;
    ValueError for a name that no file can have.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        # Asked before anything is read, and again after: a file may grow, and those of /proc say 0.
        data = b"" if status.st_size > max_bytes else _read_at_most(descriptor, max_bytes + 1, status.st_size + 1)
    finally:
        os.close(descriptor)
    if max(status.st_size, len(data)) > max_bytes:
        raise OSError(f"it holds over {max_bytes:,} bytes, more than is read of one file")
    return data


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file, open. flags: of os.open, beside those that wait for no pipe.

    Raises OSError when it is missing or anything else than a regular file; ValueError for a name that no file can have.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), 0o644)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(f"it is {_kind(mode)}, not a regular file")
    return descriptor


def _read_at_most(descriptor: int, limit: int, expected: int) -> bytes:
    """All that the file holds up to `limit` bytes; at first `expected` of them are asked for."""
    parts: list[bytes] = []
    asked = min(expected, limit)
    while asked and (part := os.read(descriptor, asked)):
        parts.append(part)
        limit -= len(part)
        asked = min(_READ_SIZE, limit)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def is_folder(name: str) -> bool:
    """True for the name of a folder. False for a text that no folder can be named: one too long, or with a NUL."""
    return _mode(name, stat.S_ISDIR)


def is_there(name: str) -> bool:
    """True for the name of anything in the file system; False for what cannot be a name there."""
    return _mode(name, lambda _: True)


def printable(text: str) -> str:
    """The text as a terminal may show it: what would move the cursor, ring, or turn the direction is written escaped.

    >>> printable("red\\x1b[31m shoe\\u202e")
    'red\\\\x1b[31m shoe\\\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(sign) if _is_control(sign) else sign for sign in text)


def in_one_line(value: object) -> str:
    """The value's text as it may stand within a line: a new line in it, which would begin another, is written escaped.

    >>> in_one_line("a.yaml\\nplugins: [x]")
    'a.yaml\\\\nplugins: [x]'
    """
    return printable(str(value)).replace("\n", "\\n")


def _mode(name: str, holds: Callable[[int], bool]) -> bool:
    if not name:
        return False  # which Path takes for the current folder
    try:
        return holds(Path(name).stat().st_mode)
    except (OSError, ValueError):
        return False


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in _CONTROLS and sign not in _KEPT


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something special")
