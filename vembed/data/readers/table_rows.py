"""Rows of an Arrow table on disk: Parquet files, `save_to_disk` folders and hub data sets, through `datasets`.

The table stays memory-mapped. Image cells stay encoded ({"bytes", "path"}): decoding is the loader's business.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from vembed.errors import DataError

Row = Mapping[str, Any]  # Any: a cell holds whatever the table holds


class TableRows:
    """`len`, `[i] -> row`, `origin(i) -> "train.parquet:17"` (the row number from 1). Class labels give their names."""

    lists_in_text = False

    def __init__(self, table: datasets.Dataset, path: str) -> None:
        self.columns = tuple(table.column_names)
        self._path = path
        self._table = table.with_format("arrow")
        self._labels = {
            name: feature for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)
        }

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        row: dict[str, Any] = self._table[index].to_pylist()[0]
        for name, labels in self._labels.items():
            row[name] = labels.int2str(row[name]) if row[name] is not None and row[name] >= 0 else None
        return row

    def origin(self, index: int) -> str:
        """Source and row number from 1, as in "train.parquet:17"."""
        return f"{self._path}:{index + 1}"


def open_parquet(path: str) -> TableRows:
    """The rows of a Parquet file. Raises DataError when it is none or has no rows."""
    try:
        num_rows = pyarrow.parquet.ParquetFile(path).metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    if num_rows == 0:
        raise DataError(f"{path}: the file is empty")
    return TableRows(datasets.Dataset.from_parquet(path), path)


def open_saved(path: str, split: str | None) -> TableRows:
    """The rows of a folder written by `save_to_disk`; of a DatasetDict the split, by default "train"."""
    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a folder written by datasets' save_to_disk, or it is empty: {error!r}") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _split_of(loaded, split, path)
    elif split is not None:
        raise DataError(f"{path}: split is {split!r}, but the folder holds one data set without splits")
    if len(loaded) == 0:
        raise DataError(f"{path}: the data set is empty")
    return TableRows(loaded, path)


def open_hub(name: str, subset: str | None, split: str | None) -> TableRows:
    """The rows of a hub data set's split, by default "train"."""
    try:
        loaded = datasets.load_dataset(name, subset, split=split or "train")
    except (OSError, ValueError, RuntimeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{name}: there is no such file or folder, and it could not be loaded from the Hugging Face hub: {error}"
        ) from error
    if len(loaded) == 0:
        raise DataError(f"{name}: the data set is empty")
    return TableRows(loaded, name)


def is_saved_folder(path: str) -> bool:
    """True if the folder looks like the work of `save_to_disk`."""
    return any((Path(path) / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def _split_of(splits: datasets.DatasetDict, split: str | None, path: str) -> datasets.Dataset:
    wanted = split or "train"
    if wanted not in splits:
        raise DataError(f"{path}: there is no split {wanted!r}; set split to one of: {', '.join(splits)}")
    return splits[wanted]
