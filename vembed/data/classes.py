"""The classes of training data: the groups that its rows name."""

from collections.abc import Sequence

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.splits.components import readable_examples


def class_keys(datasets: Sequence[VisualRetrievalDataset]) -> list[int]:
    """The distinct groups of all rows that can be read, ascending. Every row is read once; no picture is opened."""
    return sorted({example.group for _, example in readable_examples(datasets) if example.group is not None})
