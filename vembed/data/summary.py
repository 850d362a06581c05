"""A data set in a few figures, for the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vembed.data.dataset import VisualRetrievalDataset
from vembed.errors import DataError
from vembed.types import Example, Item

_MAX_ROWS = 10_000


def summarize(dataset: VisualRetrievalDataset) -> dict[str, Any]:  # Any: plain JSON values
    """Name, mode and number of rows; and of the rows looked at (all, or 10,000 evenly spread): bad rows, groups,
    documents per row, and characters of the texts. Pictures are not opened.
    """
    indices = np.unique(np.linspace(0, max(0, len(dataset) - 1), min(_MAX_ROWS, len(dataset))).astype(int))
    examples, num_bad = _readable(dataset, indices.tolist())
    groups = {example.group for example in examples if example.group is not None}
    return {
        "name": dataset.name,
        "mode": dataset.mode,
        "weight": dataset.weight,
        "num_rows": len(dataset),
        "num_rows_seen": len(indices),
        "num_bad_rows": num_bad,
        "num_groups": len(groups),
        "num_rows_with_negatives": sum(bool(example.negatives) for example in examples),
        "mean_positives": _mean([len(example.positives) for example in examples]),
        "mean_negatives": _mean([len(example.negatives) for example in examples]),
        "query_characters": _text_lengths([example.query for example in examples]),
        "document_characters": _text_lengths([item for example in examples for item in example.positives]),
    }


def _readable(dataset: VisualRetrievalDataset, indices: Sequence[int]) -> tuple[list[Example], int]:
    examples = []
    for index in indices:
        try:
            examples.append(dataset[index])
        except DataError:
            continue  # counted by the caller
    return examples, len(indices) - len(examples)


def _mean(values: Sequence[int]) -> float:
    return round(float(np.mean(values)), 3) if values else 0.0


def _text_lengths(items: Sequence[Item]) -> dict[str, int] | None:
    """Median, 95th percentile and maximum of the texts' characters, or None if no item has a text."""
    lengths = [len(item.text) for item in items if item.text is not None]
    if not lengths:
        return None
    return {
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "max": max(lengths),
    }
