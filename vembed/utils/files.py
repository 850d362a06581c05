"""Atomic writing of files and folders, their removal, and the user's cache folder."""

import fnmatch
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from vembed.errors import CheckpointError

_NEW = ".new"
_OLD = ".old"
_LEFTOVER = re.compile(r"\.(.+?)(?:\.[0-9a-f]{8})?\.(?:new|old)")
_ABANDONED_SECONDS = 3600  # nothing is written for so long by a process that lives


def user_cache(name: str) -> Path:
    """The folder of this name in the user's cache (XDG_CACHE_HOME, else ~/.cache), which need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "vembed" / name


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that it holds; of a link the link alone, never what it points to.

    What is gone already stays gone. Raises OSError when it may not be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it takes the place of `folder` when the block ends, and is removed if it fails.

    Files reach the disk before the name does, so that a folder of that name is complete even after a power cut. A
    process that dies between the two renames leaves the old folder aside: `recover` puts it back. Each call has a
    sibling of its own: of two that write the same name, the later one's stands there, whole. Raises CheckpointError
    when the disk is full or refuses.
    """
    new = _new_sibling(folder)
    try:
        with disk_errors(folder, "; what it held before is unchanged"):
            new.mkdir(parents=True)
            yield new
            _sync_tree(new)
            _replace(folder, new)
    finally:
        _try_to_remove(new)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """The same for one file. What writers left behind that died long ago goes."""
    new = _new_sibling(file)
    try:
        with disk_errors(file):
            remove_abandoned(file.parent, glob.escape(file.name))
            yield new
            sync(new)
            new.replace(file)
            sync(file.parent)
    finally:
        _try_to_remove(new)


@contextmanager
def disk_errors(path: Path, comfort: str = "") -> Iterator[None]:
    """Turns what a full or forbidding disk raises in this block into a CheckpointError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{path} could not be written{comfort}: {error}") from error


def recover(folder: Path) -> None:
    """Undo what a process that died while replacing `folder` left half done. No other may be writing it."""
    for left in _left_behind(folder, _NEW):
        _try_to_remove(left)
    for old in _left_behind(folder, _OLD):
        if not os.path.lexists(folder):
            old.rename(folder)
        _try_to_remove(old)


def remove_abandoned(parent: Path, pattern: str) -> None:
    """Remove what processes that died left of the names in `parent` that match `pattern`, as far as allowed.

    Another process, perhaps on another machine, may be writing there: only what has not changed for an hour goes.
    """
    for left in parent.glob(f".*{_NEW}"):
        is_meant = fnmatch.fnmatchcase(leftover_of(left) or "", pattern)
        if is_meant and _changed(left) < time.time() - _ABANDONED_SECONDS:
            _try_to_remove(left)


def leftover_of(path: Path) -> str | None:
    """The name that `path` is a temporary sibling of, as a process that died leaves one; None if it is none.

    >>> leftover_of(Path(".best.0123abcd.new")), leftover_of(Path(".run.json.old")), leftover_of(Path("best"))
    ('best', 'run.json', None)
    """
    match = _LEFTOVER.fullmatch(path.name)
    return None if match is None else match.group(1)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(path: Path) -> float:
    """When the file, or the folder or a file in it was last written, in seconds since the epoch; inf if it is gone."""
    try:
        inside = list(path.iterdir()) if path.is_dir() and not path.is_symlink() else []
        return max(one.lstat().st_mtime for one in (path, *inside))
    except OSError:
        return float("inf")


def _new_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_NEW}")


def _left_behind(path: Path, suffix: str) -> list[Path]:
    if not path.parent.is_dir():
        return []
    return sorted(one for one in path.parent.iterdir() if one.suffix == suffix and leftover_of(one) == path.name)


def _try_to_remove(path: Path) -> None:
    """Remove what nobody needs any more, as far as the disk lets it go."""
    with suppress(OSError):
        remove(path)


def _replace(folder: Path, new: Path) -> None:
    old = folder.with_name(f".{folder.name}{_OLD}")
    remove(old)
    if os.path.lexists(folder):
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    _try_to_remove(old)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))
