"""A validation set split off the training data, such that nothing it shows was trained on.

Whole components of rows are taken (`components`), in the order of their content hashed with the seed, each if it brings
the validation set closer to the wanted size: the same data and seed give the same split, also after rows were
reordered. The split is saved as row numbers in the run.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.hashing import mixed_hash
from vembed.data.splits.components import Components, find_components
from vembed.errors import DataError
from vembed.utils.files import atomic_file


@dataclass(frozen=True)
class Split:
    """Both parts, and `summary`: plain JSON values that also say which rows were split off.

    A data set without validation rows is missing in `validation`; every data set keeps rows in `train`.
    """

    train: list[VisualRetrievalDataset]
    validation: list[VisualRetrievalDataset]
    summary: Mapping[str, Any]  # Any: plain JSON values


def split_validation(datasets: Sequence[VisualRetrievalDataset], fraction: float, seed: int) -> Split:
    """About `fraction` of all rows for validation, at least one component; 0 splits nothing off.

    Raises DataError when the rows cannot be parted.
    """
    if fraction == 0:
        return Split(list(datasets), [], {})
    components = find_components(datasets)
    dataset_numbers = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    chosen = _choose_validation_rows(components, dataset_numbers, fraction, seed)
    rows = {
        dataset.name: np.flatnonzero(chosen[dataset_numbers == number]).tolist()
        for number, dataset in enumerate(datasets)
    }
    return _apply(datasets, rows, {"fraction": fraction, "seed": seed, "num_components": len(components.keys)})


def save_split(split: Split, path: str | Path) -> None:
    """Write the split as JSON, whole or not at all."""
    with atomic_file(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(split.summary), encoding="utf-8")


def load_split(path: str | Path, datasets: Sequence[VisualRetrievalDataset]) -> Split:
    """The saved split of the same data. Raises DataError when names or sizes of the data sets have changed."""
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
        saved = {name: (part["num_rows"], part["validation"]) for name, part in summary["datasets"].items()}
        if any(not 0 <= row < num_rows for num_rows, rows in saved.values() for row in rows):
            raise ValueError("a row number is past the end")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a saved split: {error!r}") from error
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


def _choose_validation_rows(
    components: Components, dataset_numbers: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Bool [rows]: True for the rows of the validation set."""
    component_rows = _rows_by_component(components)
    order = sorted(range(len(component_rows)), key=lambda number: mixed_hash(seed, int(components.keys[number])))
    wanted = fraction * sum(len(rows) for rows in component_rows)
    left = Counter(dataset_numbers.tolist())
    chosen, num_chosen = np.zeros(len(dataset_numbers), bool), 0
    for number in order:
        rows = component_rows[number]
        closer = abs(num_chosen + len(rows) - wanted) <= abs(num_chosen - wanted)
        if closer and _leaves_rows_in_all(left, dataset_numbers[rows]):
            chosen[rows] = True
            num_chosen += len(rows)
            left.subtract(dataset_numbers[rows].tolist())
        if num_chosen >= wanted:
            break
    return chosen if num_chosen else _smallest_component(component_rows, order, dataset_numbers)


def _smallest_component(
    component_rows: Sequence[NDArray[np.int64]], order: Sequence[int], dataset_numbers: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Bool [rows]: True for the rows of the smallest component that can be spared."""
    left = Counter(dataset_numbers.tolist())
    for number in sorted(order, key=lambda number: len(component_rows[number])):
        if _leaves_rows_in_all(left, dataset_numbers[component_rows[number]]):
            chosen = np.zeros(len(dataset_numbers), bool)
            chosen[component_rows[number]] = True
            return chosen
    raise DataError(
        f"no validation set can be split off: the {len(dataset_numbers)} rows share groups, texts or pictures, in"
        f" {len(component_rows)} connected part{'s' * (len(component_rows) != 1)}; pass val_data_path, or val_fraction:"
        " 0 to train without one"
    )


def _rows_by_component(components: Components) -> list[NDArray[np.int64]]:
    """The row numbers of each component, int64 [its rows]."""
    order = np.argsort(components.labels, kind="stable")
    labels = components.labels[order]
    starts = np.searchsorted(labels, np.arange(len(components.keys)))
    return np.split(order[starts[0] :], starts[1:] - starts[0]) if len(starts) else []


def _leaves_rows_in_all(left: Mapping[int, int], dataset_numbers: NDArray[np.int64]) -> bool:
    """True if each data set keeps rows when these are taken. left: data set -> rows that it still has."""
    return all(left[number] > count for number, count in Counter(dataset_numbers.tolist()).items())


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({num_rows} rows)" for name, num_rows in sizes.items())
