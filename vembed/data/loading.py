"""From a path to rows that know where they came from: the one place that tells file formats apart."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from vembed.data.formats import DELIMITERS, JSON_ENDINGS, PARQUET_ENDINGS, may_be_hub_name
from vembed.data.readers.csv_rows import open_csv
from vembed.data.readers.json_rows import has_key, open_json
from vembed.data.readers.text_rows import TextRows
from vembed.data.settings import DataEntry
from vembed.data.shards import check_left_out, files_of_folder, is_pattern, is_saved_folder, matching_files
from vembed.errors import DataError
from vembed.registry import nearest_names
from vembed.utils.untrusted import is_folder, is_there, library_errors

_KNOWN = ".jsonl, .json, .csv, .tsv, .parquet, a folder of Parquet files or of save_to_disk, or a hub name"
_SHOWN_LENGTH = 300  # of a path


class Rows(Protocol):
    """Rows on disk. `lists_in_text`: lists are written as text (CSV). `origin` names a row for messages."""

    lists_in_text: bool
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...  # Any: a cell holds whatever the file holds

    def origin(self, index: int) -> str: ...

    def number(self, index: int) -> int:
        """The number in the row's origin: its line, or its number where rows have no lines of their own."""
        ...


def load_rows(entry: DataEntry) -> Rows:
    """The rows at `entry.path`: a folder that `save_to_disk` wrote or of Parquet files, a file, a pattern, a hub name.

    Little is held in memory but where the rows are. Raises DataError when the file is missing, empty, not UTF-8, or of
    no known format.
    """
    path = Path(entry.path)
    if is_folder(entry.path):
        return _open_folder(entry)
    if is_there(entry.path):
        return _open_file(entry)
    _refuse_quoting(entry)
    if is_pattern(entry.path):
        return _open_shards(matching_files(entry.path, entry.split))
    if not may_be_hub_name(entry.path):
        raise DataError(f"{entry.path[:_SHOWN_LENGTH]}: there is no such file or folder{_near_file(path)}")
    from vembed.data.readers.datasets_rows import open_hub  # noqa: PLC0415 (a second to import, and text files need none of it)

    return open_hub(entry.path, entry.subset, entry.split)


def data_folder(entry: DataEntry) -> str:
    """The folder of the file that the rows are read from, at which relative paths in them start."""
    path = Path(entry.path)
    if path.is_dir() and not is_saved_folder(entry.path):
        return str(files_of_folder(entry.path, entry.subset, entry.split)[0].parent)
    return str(path.parent)


def data_name(path: str) -> str:
    """What data at a path is called: by its file or folder, or by the folder of the files that a pattern names.

    >>> data_name("a/pairs.csv"), data_name("shoes/*.parquet")
    ('pairs', 'shoes')
    """
    return Path(path).parent.name if is_pattern(path) else Path(path).stem


def load_data(path: str, **entry: Any) -> Rows:  # Any: the fields of DataEntry, which checks them
    """The rows at `path`; keywords as in a `data_path` entry of the configuration (`split`, `subset`)."""
    return load_rows(DataEntry.model_validate({"path": path, **entry}))


def has_column(rows: Rows, name: str) -> bool:
    """True if any row has the column."""
    if isinstance(rows, TextRows) and not rows.lists_in_text:
        return has_key(rows, name)
    return name in rows.columns


def _open_file(entry: DataEntry) -> Rows:
    suffix = Path(entry.path).suffix.lower()
    if entry.split is not None or entry.subset is not None:
        raise DataError(f"{entry.path}: split and subset are for hub data sets and save_to_disk folders, not for files")
    if suffix in DELIMITERS:
        return open_csv(entry.path, DELIMITERS[suffix], entry.quoting)
    _refuse_quoting(entry)
    if suffix in JSON_ENDINGS:
        return open_json(entry.path)
    if suffix in PARQUET_ENDINGS:
        from vembed.data.readers.parquet_rows import open_parquet  # noqa: PLC0415 (as above)

        return open_parquet(entry.path)
    raise DataError(f"{entry.path}: data of kind {suffix or '(no ending)'} is not known; known: {_KNOWN}")


def _open_folder(entry: DataEntry) -> Rows:
    _refuse_quoting(entry)
    if not is_saved_folder(entry.path):
        with library_errors(DataError, f"{entry.path}: the folder cannot be listed"):
            files = files_of_folder(entry.path, entry.subset, entry.split)
            check_left_out(files, entry.path, entry.subset, entry.split)
        return _open_shards(files)
    from vembed.data.readers.datasets_rows import open_saved  # noqa: PLC0415 (as above)

    return open_saved(entry.path, entry.split)


def _open_shards(files: Sequence[Path]) -> Rows:
    from vembed.data.readers.joined_rows import open_parquet_files  # noqa: PLC0415 (as above)

    return open_parquet_files([str(file) for file in files])


def _refuse_quoting(entry: DataEntry) -> None:
    if entry.quoting is not None:
        raise DataError(f"{entry.path}: quoting is for CSV and TSV files")


def _near_file(path: Path) -> str:
    if not is_folder(str(path.parent)):
        return f" (nor the folder {str(path.parent)[:_SHOWN_LENGTH]})"
    others: list[str] = []
    with suppress(OSError):  # a folder that may not be listed has no hint to give
        others = os.listdir(path.parent)  # noqa: PTH208 (names are all that is wanted)
    near = nearest_names(path.name, others) if len(path.name) < _SHOWN_LENGTH else []
    return f"; did you mean {path.parent / near[0]}?" if near else ""
