"""A validation set split off the training data, such that nothing it shows was trained on.

Whole components of rows are taken (`components`), in the order of their content hashed with the seed, such that their
rows can be ranked (`choice`): the same data and seed give the same split, also after rows were reordered. The split is
saved as row numbers in the run.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.splits.choice import choose_validation_rows
from vembed.data.splits.components import find_components
from vembed.errors import CheckpointError, DataError
from vembed.utils.sealed import read_sealed, write_sealed
from vembed.utils.untrusted import library_errors

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Both parts, and `summary`: plain JSON values that also say which rows were split off.

    A data set without validation rows is missing in `validation`; every data set keeps rows in `train`.
    """

    train: list[VisualRetrievalDataset]
    validation: list[VisualRetrievalDataset]
    summary: Mapping[str, Any]  # Any: plain JSON values

    @property
    def validation_rows(self) -> dict[str, list[int]]:
        """Data set -> numbers of its rows that were split off."""
        return {name: part["validation"] for name, part in self.summary.get("datasets", {}).items()}


def split_validation(datasets: Sequence[VisualRetrievalDataset], fraction: float, seed: int) -> Split:
    """About `fraction` of all rows for validation; 0 splits nothing off.

    Raises DataError when the rows cannot be parted so that both sides have documents to tell apart; warns where the
    wanted size is missed by far.
    """
    if fraction == 0:
        return Split(list(datasets), [], {})
    components = find_components(datasets)
    dataset_numbers = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    chosen = choose_validation_rows(components, dataset_numbers, fraction, seed)
    _warn_of_size(int(chosen.sum()), int((components.labels >= 0).sum()), fraction, len(components.keys))
    rows = {
        dataset.name: np.flatnonzero(chosen[dataset_numbers == number]).tolist()
        for number, dataset in enumerate(datasets)
    }
    return _apply(datasets, rows, {"fraction": fraction, "seed": seed, "num_components": len(components.keys)})


def _warn_of_size(num_chosen: int, num_rows: int, fraction: float, num_parts: int) -> None:
    wanted = fraction * num_rows
    if wanted / 2 <= num_chosen <= max(2 * wanted, 2):
        return
    _log.warning(
        "validation has %d of the %d rows, where val_fraction: %g asks for %.0f: rows that share a group, a text or a"
        " picture stay together, in %d parts; val_data_path names rows of your own",
        num_chosen, num_rows, fraction, wanted, num_parts,
    )  # fmt: skip


def save_split(split: Split, path: str | Path) -> None:
    """Write the split as JSON with a checksum, whole or not at all."""
    write_sealed(Path(path), split.summary)


def load_split(path: str | Path, datasets: Sequence[VisualRetrievalDataset]) -> Split:
    """The saved split of the same data.

    Raises CheckpointError when the file is damaged, DataError when names or sizes of the data sets have changed.
    """
    summary = read_sealed(Path(path))
    with library_errors(CheckpointError, f"{path}: not a saved split"):
        saved = {name: (part["num_rows"], part["validation"]) for name, part in summary["datasets"].items()}
        numbers = [number for num_rows, rows in saved.values() for number in (num_rows, *rows)]
        if any(type(number) is not int for number in numbers):
            raise ValueError("a number of rows, or of a row, is no whole number")
        if any(not 0 <= row < num_rows for num_rows, rows in saved.values() for row in rows):
            raise ValueError("a row number is past the end")
    now = {dataset.name: len(dataset) for dataset in datasets}
    then = {name: num_rows for name, (num_rows, _) in saved.items()}
    if now != then:
        raise DataError(f"{path}: the split was made of {_sizes_text(then)}, but the data now are {_sizes_text(now)}")
    rest = {key: value for key, value in summary.items() if key != "datasets"}
    return _apply(datasets, {name: rows for name, (_, rows) in saved.items()}, rest)


def _apply(
    datasets: Sequence[VisualRetrievalDataset], rows: Mapping[str, list[int]], facts: Mapping[str, Any]
) -> Split:
    train, validation = [], []
    for dataset in datasets:
        chosen = np.array(rows[dataset.name], np.int64)
        train.append(dataset.select(np.setdiff1d(np.arange(len(dataset)), chosen)))
        if len(chosen):
            validation.append(dataset.select(chosen))
    parts = {dataset.name: {"num_rows": len(dataset), "validation": rows[dataset.name]} for dataset in datasets}
    return Split(train, validation, {**facts, "datasets": parts})


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({num_rows} rows)" for name, num_rows in sizes.items())
