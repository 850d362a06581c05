"""A lock on a folder that is written into: one process has it at a time, and it goes when that process goes.

    with lock_folder(Path("output"), "output_dir output") as lock:      # UsageError while another process has it
        ...
        lock.check()                                                    # CheckpointError if it was lost on the way

It is the operating system's lock on the file run.lock in the folder, so that it ends with its process, killed or not,
and nobody has to tidy up. The file says whose it is, for the message. Its time of change is a heartbeat that a thread
renews, and decides where the system's lock cannot: on a file system without locks, or one that keeps the locks of
another machine to itself. There a heartbeat older than `STALE_SECONDS` counts as dead.

The lock is flock's. Record locks (lockf) would be lost when anything in the process opens and closes run.lock, as
a tracker does that uploads the folder, and would let a second run of the same process in. flock's are shared with
forked processes instead, which would hold the lock of a killed run: each closes its copy as it begins.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vembed.errors import CheckpointError, UsageError
from vembed.utils.lock_file import (
    Owner,
    create_lock_file,
    heartbeat_age,
    is_in_place,
    open_lock_file,
    owner_in,
    read_owner,
    system_lock,
    touch,
    write_owner,
)

LOCK_FILE = "run.lock"
STALE_SECONDS = 120
_HEARTBEAT_SECONDS = 15
_TRIES = 20

_log = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of the locks of this process, for its forks to close


class FolderLock:
    """A lock that is held. Of several processes of a run, the main one has it."""

    def __init__(self, file: Path, descriptor: int, owner: Owner) -> None:
        self._file, self._descriptor, self._owner = file, descriptor, owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run.lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise CheckpointError if another process has taken the folder, as it may where heartbeats decide.

        A process that stood still for minutes (a suspended machine, a server that was gone) counted as dead.
        """
        if self._is_lost():
            found = read_owner(self._file)
            raise CheckpointError(
                f"{self._file.parent}: {found or 'another process'} has taken the folder over, while this one gave no"
                " sign of life; nothing more is written into it"
            )

    def release(self) -> None:
        """Give the folder back. In a fork, which has no part in it, nothing happens."""
        if os.getpid() != self._owner.process:
            return
        self._ended.set()
        self._thread.join(timeout=1)  # a server that is gone may keep it waiting
        with suppress(OSError):
            if is_in_place(self._descriptor, self._file) and not self._is_lost():
                self._file.unlink()  # before the lock goes: who has it open already sees that the file is another's
        _close(self._descriptor)

    def _beat(self) -> None:
        complained = False
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            try:
                if self._is_lost():
                    return
                self._put_back()
                touch(self._descriptor, self._file)
            except OSError as error:
                if not complained:
                    _log.warning("the heartbeat of %s cannot be written (%s); the run goes on", self._file, error)
                complained = True

    def _is_lost(self) -> bool:
        found = read_owner(self._file)
        return found is not None and found.token != self._owner.token

    def _put_back(self) -> None:
        """Make the file again if somebody deleted it, before another process does."""
        if is_in_place(self._descriptor, self._file):
            return
        descriptor = create_lock_file(self._file)
        try:
            system_lock(descriptor)
            write_owner(descriptor, self._owner)
        except OSError:
            self._file.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        old, self._descriptor = self._descriptor, descriptor
        _held.add(descriptor)
        _close(old)


@dataclass(frozen=True)
class _Words:
    """What the user knows the folder as, and what else can be done."""

    what: str
    otherwise: str

    def refusal(self, owner: Owner | None, age: float | None = None) -> str:
        """age: of a heartbeat, in seconds, where nothing else says whether the owner lives."""
        doubt = ""
        if age is not None:
            doubt = (
                f" (its last sign of life is {max(0.0, age):.0f} s old; if it is dead, start again in"
                f" {STALE_SECONDS - age:.0f} s)"
            )
        writer = owner or "another process"
        return f"{self.what}: {writer} writes there{doubt}; wait until it has ended, or {self.otherwise}"

    def unwritable(self, error: OSError) -> str:
        return f"{self.what} cannot be written: {error}; {self.otherwise}"


@contextmanager
def lock_folder(folder: Path, what: str, otherwise: str = "choose another folder") -> Iterator[FolderLock]:
    """Hold the folder while the block runs; it is made if it is not there, and goes again if it stays empty.

    what, otherwise: what the folder is to the user, and what else can be done, for messages. Raises UsageError when
    another process has it, or when it cannot be written.
    """
    missing = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    try:
        lock = _take(folder, _Words(what, otherwise))
        try:
            yield lock
        finally:
            lock.release()
    finally:
        for parent in missing:  # the innermost first
            with suppress(OSError):
                parent.rmdir()


def _take(folder: Path, words: _Words) -> FolderLock:
    file, owner = folder / LOCK_FILE, Owner.here()
    for _ in range(_TRIES):
        _make(folder, words)
        try:
            descriptor, is_new = open_lock_file(file)
        except FileNotFoundError:
            continue  # a process that ended has just taken its file or its folder away
        except OSError as error:
            raise UsageError(words.unwritable(error)) from error
        try:
            _claim(descriptor, file, owner, is_new=is_new, words=words)
            if is_in_place(descriptor, file):
                _held.add(descriptor)
                _close_in_forks()
                return FolderLock(file, descriptor, owner)
        except OSError as error:
            if is_new:  # a full disk: half a file would count as a process that is about to write
                file.unlink(missing_ok=True)
            raise UsageError(words.unwritable(error)) from error
        finally:
            if descriptor not in _held:
                os.close(descriptor)
    raise UsageError(f"{words.what} cannot be held: {file} comes and goes; other processes start there too")


def _make(folder: Path, words: _Words) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{words.what} cannot be made: {error}; {words.otherwise}") from error


def _claim(descriptor: int, file: Path, owner: Owner, *, is_new: bool, words: _Words) -> None:
    """Make the owner the file's. Raises UsageError when another process has it."""
    has_locks = system_lock(descriptor)
    before = owner_in(descriptor)
    if has_locks is False:
        raise UsageError(words.refusal(before))
    if has_locks is None:
        _log.info("%s: the file system has no locks; a heartbeat every %d s guards it", file, _HEARTBEAT_SECONDS)
    is_dead = has_locks and (before is None or before.machine == owner.machine)  # or it would hold the lock
    if is_new or is_dead:
        write_owner(descriptor, owner)
        return
    age = heartbeat_age(descriptor, file.parent)
    if abs(age) < STALE_SECONDS:
        raise UsageError(words.refusal(before, age))
    with _only_heir(file, before, words):
        if owner_in(descriptor) != before:
            raise UsageError(words.refusal(owner_in(descriptor)))
        write_owner(descriptor, owner)
    _log.warning("%s: taken over from %s whose last sign of life is %.0f s old", words.what, before or "a process", age)


@contextmanager
def _only_heir(file: Path, dead: Owner | None, words: _Words) -> Iterator[None]:
    """Let one process at a time take over from the same dead one. Raises UsageError in the others."""
    claim = file.with_name(f".{file.name}.{'unknown' if dead is None else dead.token}")
    with suppress(OSError):
        if time.time() - claim.stat().st_mtime > STALE_SECONDS:
            claim.unlink()  # an heir that died as well
    try:
        os.close(create_lock_file(claim))
    except FileExistsError as error:
        raise UsageError(f"{words.what}: another process is just taking it over from a dead one") from error
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    with suppress(OSError):
        os.close(descriptor)


@cache
def _close_in_forks() -> None:
    """Have every process that is forked from now on close the locks of this one: they are not its own."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    for descriptor in tuple(_held):
        _close(descriptor)
