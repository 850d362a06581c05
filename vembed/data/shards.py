"""The Parquet files of a folder or pattern that are one data set together, as the Hugging Face hub lays them out.

repo/data/train-00000-of-00002.parquet      the split in the name, and how many files there are
repo/french/test-00000-of-00001.parquet     a subset in a folder of its own
repo/french/train/0000.parquet              the split as a folder
"""

import glob
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vembed.data.formats import DATA_ENDINGS, PARQUET_ENDINGS
from vembed.errors import DataError
from vembed.utils.untrusted import printable

_OF = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_SPLIT_WORDS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLIT_WORDS.items() for word in words.split()}
_SHOWN = 8
_LONGEST_PATH = 4096
_log = logging.getLogger(__name__)


def is_pattern(path: str) -> bool:
    """True if a path that names no file may name several.

    >>> is_pattern("data/*.parquet"), is_pattern("data.parquet")
    (True, False)
    """
    return len(path) <= _LONGEST_PATH and glob.has_magic(path)  # a longer one takes minutes to try, and fits nothing


def fits_files(path: str) -> bool:
    """True if the path is a pattern that some file or folder fits."""
    return is_pattern(path) and bool(_fitting(path))


def is_saved_folder(path: str) -> bool:
    """True if the folder looks like the work of datasets' `save_to_disk`."""
    return any((Path(path) / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def matching_files(pattern: str, split: str | None) -> list[Path]:
    """The Parquet files that a pattern names, in the order of their names; of a split, if one is wanted.

    Raises DataError when there are none, or others too: files of other kinds, files that cannot be read, folders with
    Parquet files that the pattern does not fit, or files of two writings of one split.
    """
    found = _fitting(pattern)
    files = [path for path in found if _is_named_parquet(path) or not path.is_dir()]
    others = [path.name for path in files if not _is_named_parquet(path)]
    if not files:
        raise DataError(f"{pattern}: there is no such file, and none that the pattern fits")
    if others:
        raise DataError(f"{pattern}: a pattern is for Parquet files, and fits {', '.join(others[:_SHOWN])} too")
    _refuse_irregular(files)
    inner = sorted({file for path in found if path.is_dir() for file in _parquet_below(path)} - set(files))
    if inner:
        raise DataError(
            f"{pattern}: fits folders too, and would leave out what they hold: {_listed(inner)}; let it fit files only,"
            " or these files as well"
        )
    chosen = files if split is None else _files_of_split(files, split, pattern)
    _refuse_two_writings(chosen, pattern)
    return chosen


def files_of_folder(path: str, subset: str | None, split: str | None) -> list[Path]:
    """The Parquet files of a folder's split, by default "train", where their names or folders tell splits apart.

    Raises DataError when there are none, when a file of several is missing or cannot be read, when the files are of two
    writings, or when other data lies beside them.
    """
    folder = _data_set_folder(path, subset)
    files = next((found for found in _places(folder, split) if found), [])
    if not files:
        raise DataError(_nothing_found(Path(path), subset))
    _refuse_other_data(files, path)
    chosen = files
    if split is not None or any(_split_of(file) for file in files):
        chosen = _files_of_split(files, split or "train", path)
    _refuse_two_writings(chosen, path)
    _refuse_missing(chosen, path)
    return chosen


def check_left_out(files: Sequence[Path], path: str, subset: str | None, split: str | None) -> None:
    """Look for Parquet files below the folder that are not among those of `files_of_folder`, nor of another split.

    Raises DataError where they may be of the same data set: beside files whose names tell no split, or in a second
    place that is looked for one. Elsewhere (a subset beside the data set that has no name) they are told as a warning.
    """
    folder = _data_set_folder(path, subset)
    told = split is not None or any(_split_of(file) for file in files)
    wanted = {None, split, _canonical(split or "train")}
    near = set(files).union(*map(_named_parquet, {file.parent for file in files}))
    left_out = [file for file in _parquet_below(folder) if file not in near and (not told or _split_of(file) in wanted)]
    second = (
        left_out if not told else sorted({file for found in _places(folder, split) for file in found} & set(left_out))
    )
    if second:
        raise DataError(
            f"{path}: would be read from {_listed(files)}, and {_listed(second)} left out, in another folder; put the"
            " files of a data set into one folder, or name them by a pattern"
        )
    if left_out:
        _log.warning("%s: Parquet files in other folders are not read: %s", path, printable(_listed(left_out)))


def _data_set_folder(path: str, subset: str | None) -> Path:
    return Path(path) if subset is None else Path(path) / subset


def _places(folder: Path, split: str | None) -> Iterator[list[Path]]:
    """The Parquet files of each folder that may hold a data set's, the likelier first."""
    for place in (folder, folder / "data"):
        yield _parquet_files(place)
        yield sorted(file for inner in _folders(place) if _canonical(inner.name) for file in _parquet_files(inner))
        if split is not None:
            yield _parquet_files(place / split)


def _files_of_split(files: Sequence[Path], split: str, path: str) -> list[Path]:
    wanted = _canonical(split) or split
    chosen = [file for file in files if _split_of(file) == wanted or file.parent.name == split]
    if not chosen:
        found = sorted({str(_split_of(file)) for file in files} - {"None"})
        known = f"set split to one of: {', '.join(found)}" if found else "the names of its files tell no splits apart"
        raise DataError(f"{path}: there is no split {split!r}; {known}")
    unclear = [file.name for file in files if _split_of(file) is None and file not in chosen]
    if unclear:
        raise DataError(
            f"{path}: the names of {', '.join(unclear[:_SHOWN])} do not say to which split they belong, those of others"
            " do; name the files by a pattern"
        )
    return chosen


def _split_of(file: Path) -> str | None:
    """The split that a file's name tells, or its folder's, in the hub's own word for it."""
    numbered = _OF.fullmatch(file.stem)
    if numbered:
        return _canonical(numbered["split"]) or numbered["split"]
    words = [word for word in re.split(r"[^a-z]+", file.stem.lower()) if word in _SPLIT_OF_WORD]
    return _SPLIT_OF_WORD[words[0]] if words else _canonical(file.parent.name)


def _canonical(word: str) -> str | None:
    return _SPLIT_OF_WORD.get(word.lower())


def _refuse_missing(files: Sequence[Path], path: str) -> None:
    """Raise DataError when names say that there are more files than are here."""
    counts: dict[tuple[Path, str, str], set[int]] = {}
    for file in files:
        if numbered := _OF.fullmatch(file.stem):
            counts.setdefault((file.parent, numbered["split"], numbered["count"]), set()).add(int(numbered["number"]))
    for (_, split, count), numbers in counts.items():
        there = sum(number < int(count) for number in numbers)
        if there < int(count):
            first = next(number for number in itertools.count() if number not in numbers)
            raise DataError(
                f"{path}: of the {int(count)} files of {split}, {int(count) - there} are missing, the first of them"
                f" {split}-{first:05d}-of-{count}; download them, or name those that are wanted by a pattern"
            )


def _refuse_two_writings(files: Sequence[Path], path: str) -> None:
    """Raise DataError when names count the files of one split differently: some are left of an earlier writing."""
    counts: dict[tuple[Path, str], set[str]] = {}
    for file in files:
        if numbered := _OF.fullmatch(file.stem):
            counts.setdefault((file.parent, numbered["split"]), set()).add(numbered["count"])
    for (_, split), of in counts.items():
        if len(of) > 1:
            patterns = " or ".join(f"{split}-*-of-{count}" for count in sorted(of))
            raise DataError(
                f"{path}: the files of {split} were written at least twice, as their names count differently many;"
                f" delete the older ones, or name one writing by a pattern: {patterns}"
            )


def _refuse_irregular(files: Sequence[Path]) -> None:
    """Raise DataError for what has the name of a Parquet file, and is none that can be read."""
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{file}: is {_kind(file)}, and no file that can be read; mend it, or name the files that are wanted by"
                " a pattern that leaves it out"
            )


def _refuse_other_data(files: Sequence[Path], path: str) -> None:
    """Raise DataError when data of another kind lies beside the files: it would be left out."""
    folders = {file.parent for file in files}
    others = [
        file.name
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in DATA_ENDINGS - PARQUET_ENDINGS - {".json"}
    ]
    if others:
        raise DataError(
            f"{path}: holds Parquet files, and {', '.join(others[:_SHOWN])} beside them; name the file, or the Parquet"
            " files by a pattern"
        )


def _nothing_found(folder: Path, subset: str | None) -> str:
    wanted = f"{folder}: " if subset is None else f"{folder}: subset {subset!r}: "
    subsets = [
        inner.name for inner in _folders(folder) if next((True for found in _places(inner, None) if found), False)
    ]
    if subsets:
        return f"{wanted}there are Parquet files in folders of their own; set subset to one of: {', '.join(subsets)}"
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:_SHOWN])
    return (
        f"{wanted}a folder must be one that datasets' save_to_disk wrote, or hold Parquet files; this one holds"
        f" {names or 'nothing'}"
    )


def _fitting(pattern: str) -> list[Path]:
    return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 (a Path's own starts at a folder)


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files that lie in the folder. Raises DataError when something of such a name beside them is none."""
    named = _named_parquet(folder)
    if not any(path.is_file() for path in named):
        return []
    _refuse_irregular(named)
    return named


def _named_parquet(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_named_parquet(path)) if folder.is_dir() else []


def _parquet_below(folder: Path) -> list[Path]:
    """All that is named like a Parquet file in the folder and below, but for hidden folders."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [file for name in names if _is_named_parquet(file := Path(place, name))]
    return sorted(found)


def _is_named_parquet(path: Path) -> bool:
    return path.suffix.lower() in PARQUET_ENDINGS


def _kind(path: Path) -> str:
    if not path.exists():
        return "a link to nothing"
    return "a folder" if path.is_dir() else "a pipe" if path.is_fifo() else "a socket or a device"


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{', '.join(map(str, files[:_SHOWN]))}{more}"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
