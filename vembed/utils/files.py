"""Atomic writing of files and folders, and the user's cache folder."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vembed.errors import CheckpointError

_NEW = ".new"
_OLD = ".old"
_ABANDONED_SECONDS = 3600  # nothing is written for so long by a process that lives


def user_cache(name: str) -> Path:
    """The folder of this name in the user's cache (XDG_CACHE_HOME, else ~/.cache), which need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "vembed" / name


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it takes the place of `folder` when the block ends, and is removed if it fails.

    Files reach the disk before the name does, so that a folder of that name is complete even after a power cut. A
    process that dies between the two renames leaves the old folder aside: `recover` puts it back. Raises
    CheckpointError when the disk is full or refuses.
    """
    new = _sibling(folder, _NEW)
    try:
        with disk_errors(folder, "; what it held before is unchanged"):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            yield new
            _sync_tree(new)
            _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """The same for one file."""
    new = _sibling(file, _NEW)
    try:
        with disk_errors(file):
            yield new
            _sync(new)
            new.replace(file)
            _sync(file.parent)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path, comfort: str = "") -> Iterator[None]:
    """Turns what a full or forbidding disk raises in this block into a CheckpointError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{path} could not be written{comfort}: {error}") from error


def recover(folder: Path) -> None:
    """Undo what a process that died while replacing `folder` left half done."""
    shutil.rmtree(_sibling(folder, _NEW), ignore_errors=True)
    old = _sibling(folder, _OLD)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_abandoned(parent: Path, pattern: str) -> None:
    """Remove what processes that died left of the folders in `parent` whose names match `pattern`, as far as allowed.

    Another process, perhaps on another machine, may be writing there: only what has not changed for an hour goes.
    """
    for left in parent.glob(f".{pattern}{_NEW}"):
        if _changed(left) < time.time() - _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _changed(folder: Path) -> float:
    """When the folder or a file in it was last written, in seconds since the epoch; inf if it is gone by now."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return float("inf")


def is_leftover(path: Path) -> bool:
    """True if `path` is a temporary sibling that a process left behind when it died."""
    return path.name.startswith(".") and path.suffix in {_NEW, _OLD}


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _replace(folder: Path, new: Path) -> None:
    old = _sibling(folder, _OLD)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
