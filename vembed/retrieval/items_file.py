"""Items to embed, read from a folder of images, a text file, or a table. No value's kind is guessed from its looks.

| input | items |
|---|---|
| folder | every file in it and below it with an image's ending, in the order of their paths; the id is the path |
| .txt | one text per line; the id is the number of the line |
| .jsonl, .json, .csv, .tsv, .parquet | columns `text`, `image` or both; the id is column `id`, else the row's number |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.data.columns import tell_unread_columns
from vembed.data.fields.cells import checked_number, checked_text, describe_cell, is_absent
from vembed.data.fields.images import ImageCellParser
from vembed.data.images import check_file
from vembed.data.loading import Rows, has_column, load_rows
from vembed.data.readers.text_rows import line_ends, refuse_old_line_ends
from vembed.data.settings import DataEntry
from vembed.data.shards import is_pattern, matching_files
from vembed.errors import DataError
from vembed.retrieval.image_folder import image_paths
from vembed.retrieval.item_ids import RowId, check_ids
from vembed.types import ImageSource, Item
from vembed.utils.untrusted import is_folder, is_there, printable, read_regular_file

_MAX_TEXT_BYTES = 1 << 34
_SHOWN_LENGTH = 300  # of a path
Row = Mapping[str, Any]  # Any: a cell holds whatever the file holds


@dataclass(frozen=True)
class NamedItem:
    """An item and its id."""

    name: str
    item: Item


@dataclass(frozen=True)
class ItemsFile:
    """Items by their numbers, each read when it is asked for. origins: where each one stands, for messages."""

    path: Path
    num_items: int
    origin: Callable[[int], str]
    read: Callable[[int], NamedItem]
    check_ids: Callable[[], None] = lambda: None
    """Raises DataError when ids that rows give and those that they are given are the same; warns of ids given twice."""

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, number: int) -> NamedItem:
        """The item. Raises DataError, which names file and line, when it cannot be used; IndexError past the end."""
        if not 0 <= number < self.num_items:
            raise IndexError(f"{self.path}: item {number} of {self.num_items}")
        return self.read(number)

    def check(self) -> None:
        """Raise DataError for the first item that cannot be used, or names no image file. No picture is opened."""
        for number in range(self.num_items):
            for source in self[number].item.images:
                check_file(source)


def open_items(path: Path) -> ItemsFile:
    """The items of a folder or file. Raises DataError when it cannot be read, or holds none."""
    if is_folder(str(path)):
        items = _images_of_folder(path)
    elif path.suffix.lower() == ".txt":
        items = _texts_of_file(path)
    else:
        items = _items_of_table(path)
    if not items:
        raise DataError(f"{path}: there is nothing to embed in it")
    return items


def files_of_input(path: Path) -> list[Path]:
    """The files that `open_items` reads at the path: itself, or those that a pattern such as `shards/*.parquet` names.

    Raises DataError for a pattern that names none.
    """
    if is_there(str(path)) or not is_pattern(str(path)):
        return [path]
    return matching_files(str(path), None)


def _images_of_folder(folder: Path) -> ItemsFile:
    paths = image_paths(folder)

    def read(number: int) -> NamedItem:
        path = paths[number]
        item = Item(images=(ImageSource(path=str(path)),), origin=printable(str(path)))
        return NamedItem(_checked_name(path.relative_to(folder).as_posix(), item.origin), item)

    return ItemsFile(folder, len(paths), lambda number: printable(str(paths[number])), read)


def _texts_of_file(path: Path) -> ItemsFile:
    try:
        data = read_regular_file(path, max_bytes=_MAX_TEXT_BYTES)
    except (OSError, ValueError) as error:
        words = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"{str(path)[:_SHOWN_LENGTH]}: cannot be read as a text file: {words}") from error
    line_ends(data, str(path))  # refuses what is not UTF-8
    refuse_old_line_ends(data, str(path))
    lines = data.decode("utf-8-sig").split("\n")

    def read(number: int) -> NamedItem:
        line, origin = lines[number], f"{path}:{number + 1}"
        if not line.strip():
            raise DataError(f"{origin}: the line is empty; each line is one text")
        if "\0" in line:
            raise DataError(f"{origin}: the line holds a null character, which no text does; is the file a text file?")
        return NamedItem(str(number + 1), Item(text=line.removesuffix("\r"), origin=origin))

    num_lines = len(lines) - 1 if lines[-1] == "" else len(lines)
    return ItemsFile(path, num_lines, lambda number: f"{path}:{number + 1}", read)


def _items_of_table(path: Path) -> ItemsFile:
    rows = load_rows(DataEntry(path=str(path)))
    tell_unread_columns(rows, ("text", "image", "id"), str(path))
    image_parser = ImageCellParser(str(path.parent))

    def read(number: int) -> NamedItem:
        row, origin = rows[number], rows.origin(number)
        return NamedItem(_checked_name(_row_id(row, rows, number).name, origin), _item(row, origin, image_parser))

    def ids() -> Iterator[RowId]:
        for number in range(len(rows)) if has_column(rows, "id") else ():
            with suppress(DataError):  # of a row that is told, or left out, when it is embedded
                yield _row_id(rows[number], rows, number)

    return ItemsFile(path, len(rows), rows.origin, read, lambda: check_ids(ids(), str(path)))


def _row_id(row: Row, rows: Rows, number: int) -> RowId:
    origin = rows.origin(number)
    name = _name(row.get("id"), origin)
    return RowId(str(rows.number(number)) if name is None else name, name is not None, origin)


def _name(cell: Any, origin: str) -> str | None:  # Any: as above
    """The id that a row gives, None where it gives none."""
    if is_absent(cell):
        return None
    if isinstance(cell, str):
        return checked_text(cell, f"{origin}: id")
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise DataError(f"{origin}: id: is a text or a number, not {describe_cell(cell)}")
    checked_number(cell, f"{origin}: id")
    return str(cell)


def _checked_name(name: str, origin: str) -> str:
    """The id. Raises DataError for one that the files of vectors cannot hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{origin}: the id {printable(name[:_SHOWN_LENGTH])} is no Unicode text; rename it") from error
    if "\0" in name:
        raise DataError(f"{origin}: the id {printable(name[:_SHOWN_LENGTH])} holds a null character; rename it")
    return name


def _item(row: Row, origin: str, image_parser: ImageCellParser) -> Item:
    text, image = row.get("text"), row.get("image")
    if is_absent(text) and is_absent(image):
        raise DataError(f"{origin}: needs a column text or image; the row has {', '.join(row) or 'nothing'}")
    cells: Sequence[Any] = image if isinstance(image, list | tuple) else [] if is_absent(image) else [image]
    images = tuple(image_parser(cell, f"{origin}: image") for cell in cells)
    return Item(text=None if is_absent(text) else checked_text(text, f"{origin}: text"), images=images, origin=origin)
