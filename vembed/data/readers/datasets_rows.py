"""Rows of `save_to_disk` folders and of hub data sets, through `datasets`. The tables stay memory-mapped."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.constants import HF_HUB_CACHE

from vembed.data.readers.source_file import FileIdentity
from vembed.data.readers.table_rows import Cells, TableRows
from vembed.errors import DataError
from vembed.utils.untrusted import library_errors


class DatasetTable:
    """A table of `datasets`. Picklable: another process maps the same files, and refuses them if they have changed."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self._dataset = dataset.with_format("arrow")
        self._files = {file["filename"]: FileIdentity.of(file["filename"]) for file in dataset.cache_files}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def locate(self, index: int) -> tuple[Cells, int]:
        """A table of the row alone, and 0."""
        return self._dataset[index], 0

    def __setstate__(self, state: Mapping[str, Any]) -> None:  # Any: pickle's own protocol
        self.__dict__.update(state)
        for path, identity in self._files.items():
            identity.check(path)


def open_saved(path: str, split: str | None) -> TableRows:
    """The rows of a folder written by `save_to_disk`; of a DatasetDict the split, by default "train".

    Raises DataError when it is damaged, or holds anything but files and folders: a pipe would be waited for.
    """
    _refuse_irregular(path)
    with library_errors(
        DataError,
        f"{path}: not a folder written by datasets' save_to_disk, or it is empty or damaged",
        or_too_large=True,
    ):
        loaded = datasets.load_from_disk(path)
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _split_of(loaded, split, path)
    elif split is not None:
        raise DataError(f"{path}: split is {split!r}, but the folder holds one data set without splits")
    return _table_rows(loaded, path)


def _refuse_irregular(path: str) -> None:
    for place, _, names in os.walk(path):
        for name in names:
            FileIdentity.of(str(Path(place, name)))


def open_hub(name: str, subset: str | None, split: str | None) -> TableRows:
    """The rows of a hub data set's split, by default "train"."""
    failed = f"{name}: there is no such file or folder, and it could not be loaded from the Hugging Face hub"
    try:
        with library_errors(DataError, failed, or_too_large=True):
            loaded = datasets.load_dataset(name, subset, split=split or "train")
    except DataError as error:
        folder = _unwritable_cache()
        if folder is None:
            raise
        raise DataError(
            f"{error} (its cache {folder} cannot be written: name a folder that can be in HF_HOME, or in"
            " HF_DATASETS_CACHE and HF_HUB_CACHE)"
        ) from error
    return _table_rows(loaded, name)


def _table_rows(dataset: datasets.Dataset, path: str) -> TableRows:
    if len(dataset) == 0:
        raise DataError(f"{path}: the data set is empty")
    with library_errors(DataError, f"{path}: the data set is damaged", or_too_large=True):
        dataset.data.validate(full=True)  # a mapped file is trusted otherwise: places in it may lead anywhere
        labels = {name: one.names for name, one in dataset.features.items() if isinstance(one, datasets.ClassLabel)}
        return TableRows(DatasetTable(dataset), path, labels)


def _unwritable_cache() -> str | None:
    """The folder in which the hub's data is kept, if it cannot be written."""
    for folder in (str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError:
            return folder
        if not os.access(folder, os.W_OK):
            return folder
    return None


def _split_of(splits: datasets.DatasetDict, split: str | None, path: str) -> datasets.Dataset:
    wanted = split or "train"
    if wanted not in splits:
        raise DataError(f"{path}: there is no split {wanted!r}; set split to one of: {', '.join(splits)}")
    return splits[wanted]
