"""A named data set: rows on disk, read as examples on demand."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vembed.data.columns import check_columns, with_numbered_negatives
from vembed.data.fields.columns import check_column_mapping
from vembed.data.fields.images import ImageCellParser
from vembed.data.loading import Rows, data_folder, data_name, load_rows
from vembed.data.records import RowReader
from vembed.data.settings import DataEntry, DataSettings, DataSource
from vembed.errors import ConfigError, DataError
from vembed.types import Example, RowNeeds
from vembed.utils.untrusted import is_folder


class VisualRetrievalDataset:
    """Examples by number. `rows` stay on disk; `indices` (int64 [examples]) are those of this data set, default all."""

    def __init__(
        self,
        name: str,
        rows: Rows,
        reader: RowReader,
        *,
        weight: float = 1.0,
        indices: NDArray[np.int64] | None = None,
    ) -> None:
        self.name = name
        self.weight = weight
        self.reader = reader
        self._rows = rows
        self._indices = indices

    @property
    def mode(self) -> str:
        """The retrieval mode, as in "t2i"."""
        return self.reader.mode

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the data has."""
        return self._rows.columns

    def __len__(self) -> int:
        return len(self._rows) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The example. Raises DataError when its row cannot be used, IndexError past the end."""
        row = self._row_number(index)
        return self.reader(self._rows[row], self._rows.origin(row))

    def origin(self, index: int) -> str:
        """File and line of the example's row, as in "train.jsonl:17"."""
        return self._rows.origin(self._row_number(index))

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "VisualRetrievalDataset":
        """The examples at `indices` of this data set, under the same name and weight."""
        chosen = np.asarray(indices, dtype=np.int64)
        if self._indices is not None:
            chosen = self._indices[chosen]
        return VisualRetrievalDataset(self.name, self._rows, self.reader, weight=self.weight, indices=chosen)

    def _row_number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: example {index} of {len(self)}")
        return index if self._indices is None else int(self._indices[index])


def load_datasets(
    source: DataSource, settings: DataSettings, *, default_name: str = "data", needs: RowNeeds | None = None
) -> list[VisualRetrievalDataset]:
    """The data sets at `source`, in order, with unique names.

    A name is the entry's own, else its retrieval mode if no other entry has it, else its file's stem, else
    `default_name`. needs: what every row must have beyond query and positive. Raises DataError when data or a column
    cannot be read, ConfigError for a wrong column mapping.
    """
    given = [source] if isinstance(source, str | DataEntry) else list(source)
    if not given:
        raise ConfigError("the list of data sets is empty; name at least one file")
    entries = [DataEntry.model_validate({"path": entry}) if isinstance(entry, str) else entry for entry in given]
    names = _unique_names(entries, settings, default_name)
    return [_load(entry, name, settings, needs or RowNeeds()) for entry, name in zip(entries, names, strict=True)]


def _load(entry: DataEntry, name: str, settings: DataSettings, needs: RowNeeds) -> VisualRetrievalDataset:
    mapping = settings.column_mapping if entry.column_mapping is None else entry.column_mapping
    check_column_mapping(mapping)
    rows = load_rows(entry)
    columns = with_numbered_negatives(mapping, rows)
    mode = entry.retrieval_mode or settings.retrieval_mode
    reader = RowReader(mode, columns, _image_parser(entry, settings), rows.lists_in_text, needs)
    check_columns(rows, reader, entry.path)
    return VisualRetrievalDataset(name, rows, reader, weight=entry.weight)


def _image_parser(entry: DataEntry, settings: DataSettings) -> ImageCellParser:
    root = entry.image_root or settings.image_root
    if root is None:
        return ImageCellParser(data_folder(entry))
    if not is_folder(root):
        raise DataError(f"image_root: there is no folder {root[:300]}")
    return ImageCellParser(root, confined=not settings.allow_paths_outside_image_root)


def _unique_names(entries: Sequence[DataEntry], settings: DataSettings, default_name: str) -> list[str]:
    modes = [entry.retrieval_mode or settings.retrieval_mode for entry in entries]
    alone = {mode for mode, count in Counter(modes).items() if count == 1}
    names: list[str] = []
    for entry, mode in zip(entries, modes, strict=True):
        if entry.name is not None and entry.name in names:
            raise ConfigError(f"two data sets are called {entry.name!r}; give each a name of its own")
        wanted = entry.name or (mode if mode in alone else data_name(entry.path) or default_name)
        names.append(_free_name(wanted, {*names, *(other.name for other in entries if other.name != wanted)}))
    return names


def _free_name(wanted: str, taken: set[str | None]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name
