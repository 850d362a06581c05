"""The Parquet files of a folder or pattern that are one data set together, as the Hugging Face hub lays them out.

repo/data/train-00000-of-00002.parquet      the split in the name, and how many files there are
repo/french/test-00000-of-00001.parquet     a subset in a folder of its own
repo/french/train/0000.parquet              the split as a folder
"""

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vembed.data.formats import DATA_ENDINGS, PARQUET_ENDINGS
from vembed.errors import DataError

_OF = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_SPLIT_WORDS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLIT_WORDS.items() for word in words.split()}
_SHOWN = 8


def is_pattern(path: str) -> bool:
    """True if a path that names no file may name several.

    >>> is_pattern("data/*.parquet"), is_pattern("data.parquet")
    (True, False)
    """
    return glob.has_magic(path)


def fits_files(path: str) -> bool:
    """True if the path is a pattern that some file or folder fits."""
    return is_pattern(path) and bool(_fitting(path))


def is_saved_folder(path: str) -> bool:
    """True if the folder looks like the work of datasets' `save_to_disk`."""
    return any((Path(path) / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def matching_files(pattern: str, split: str | None) -> list[Path]:
    """The Parquet files that a pattern names, in the order of their names; of a split, if one is wanted.

    Raises DataError when there are none, or others too.
    """
    files = [path for path in _fitting(pattern) if path.is_file()]
    others = [path.name for path in files if path.suffix.lower() not in PARQUET_ENDINGS]
    if not files:
        raise DataError(f"{pattern}: there is no such file, and none that the pattern fits")
    if others:
        raise DataError(f"{pattern}: a pattern is for Parquet files, and fits {', '.join(others[:_SHOWN])} too")
    return files if split is None else _files_of_split(files, split, pattern)


def files_of_folder(path: str, subset: str | None, split: str | None) -> list[Path]:
    """The Parquet files of a folder's split, by default "train", where their names or folders tell splits apart.

    Raises DataError when there are none, when a file of several is missing, or when other data lies beside them.
    """
    folder = Path(path) if subset is None else Path(path) / subset
    files = next((found for found in _places(folder, split) if found), [])
    if not files:
        raise DataError(_nothing_found(Path(path), subset))
    _refuse_other_data(files, path)
    chosen = files
    if split is not None or any(_split_of(file) for file in files):
        chosen = _files_of_split(files, split or "train", path)
    _refuse_missing(chosen, path)
    return chosen


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
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            raise DataError(
                f"{path}: of the {int(count)} files of {split}, {len(missing)} are missing, the first of them"
                f" {split}-{missing[0]:05d}-of-{count}; download them, or name those that are wanted by a pattern"
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
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PARQUET_ENDINGS and path.is_file())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
