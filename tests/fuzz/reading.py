"""A data file as training reads it: every row found, checked, loaded and embedded; and the judgement of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.fuzz.verdict import Verdict
from vembed.data.batches.blocks import Block, BlockLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.validation import BadRow, check_dataset
from vembed.errors import DataError
from vembed.model.modeling import VisualRetrievalModel

Pair = tuple[str, tuple[str, ...]]  # the query's text and the positives' texts
Reference = Sequence[tuple[str, Pair | None]]  # how each row's origin ends, and its pair: None where it says nothing


@dataclass(frozen=True)
class ReadRow:
    """A row that was read: where it is, and its pair; None if it was skipped."""

    origin: str
    pair: Pair | None


def read_texts(
    path: Path, model: VisualRetrievalModel, policy: Literal["raise", "skip"], settings: Mapping[str, object] = {}
) -> list[ReadRow]:
    """The rows of a text-to-text data file. Raises what the package raises."""
    given = {"data_path": str(path), "retrieval_mode": "t2t", "on_bad_sample": policy, "max_bad_fraction": 1.0}
    data = DataSettings.model_validate({**given, **settings})
    (dataset,) = load_datasets(str(path), data)
    bad = {row.origin for row in check_dataset(dataset, data)}
    block = Block(0, tuple(range(len(dataset))), 0)
    loaded = BlockLoader((dataset,), model.processor, seed=0).load(block)
    rows = []
    for index, row in enumerate(loaded):
        origin = dataset.origin(index)
        if isinstance(row, BadRow):
            rows.append(ReadRow(origin, None))
            continue
        if origin in bad:
            raise AssertionError(f"{origin} is bad by the check before training and good in the loader")
        example = dataset[index]
        model.encode([example.query, *example.positives])
        rows.append(ReadRow(origin, (str(row.query.text), tuple(str(item.text) for item in row.positives))))
    return rows


def judge_texts(
    path: Path, model: VisualRetrievalModel, reference: Reference, settings: Mapping[str, object] = {}
) -> Verdict:
    """The verdict on a file whose rows are those of `reference`, in order."""
    try:
        rows = read_texts(path, model, "skip", settings)
    except DataError:
        _must_refuse(path, model, settings)
        raise
    if len(rows) != len(reference):
        return Verdict("wrong", f"{len(rows)} rows, expected {len(reference)}")
    for row, (place, pair) in zip(rows, reference, strict=True):
        if not row.origin.endswith(place):
            return Verdict("wrong", f"{row.origin}: is at {place}")
        if row.pair is not None and row.pair != pair:
            return Verdict("wrong", f"{row.origin}: read {row.pair!r}, expected {pair!r}"[:300])
    if all(row.pair is not None for row in rows):
        return (
            Verdict("right")
            if read_texts(path, model, "raise", settings) == rows
            else Verdict("wrong", "raise reads other rows than skip")
        )
    _must_refuse(path, model, settings)
    return Verdict("skipped")


def _must_refuse(path: Path, model: VisualRetrievalModel, settings: Mapping[str, object]) -> None:
    """What has bad rows is refused with on_bad_sample: raise, before training or when the row comes."""
    try:
        rows = read_texts(path, model, "raise", settings)
    except DataError:
        return
    if all(row.pair is not None for row in rows):
        raise AssertionError(f"{path}: on_bad_sample: raise accepts what skip does not")


def first_texts(values: Sequence[object]) -> "tuple[str, ...] | None":
    """The texts of cells that are texts or {"text": ...}; None if any is something else, or blank."""
    texts = [value.get("text") if isinstance(value, dict) else value for value in values]
    good = all(isinstance(text, str) and text.strip() for text in texts)
    return tuple(str(text) for text in texts) if good and texts else None
