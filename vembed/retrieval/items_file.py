"""Items to embed, read from a folder of images, a text file, or a table. No value's kind is guessed from its looks.

| input | items |
|---|---|
| folder | every image file in it and below it, in the order of their paths; the id is the path |
| .txt | one text per line; the id is the number of the line |
| .jsonl, .json, .csv, .tsv, .parquet | columns `text`, `image` or both; the id is column `id`, else the row's number |
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.data.fields.cells import checked_number, checked_text, describe_cell, is_absent
from vembed.data.fields.images import ImageCellParser
from vembed.data.loading import load_rows
from vembed.data.settings import DataEntry
from vembed.errors import DataError
from vembed.types import ImageSource, Item

_IMAGE_ENDINGS = frozenset(".avif .bmp .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .png .ppm .tif .tiff .webp".split())
Row = Mapping[str, Any]  # Any: a cell holds whatever the file holds


@dataclass(frozen=True)
class NamedItem:
    """An item and its id."""

    name: str
    item: Item


def read_items(path: Path) -> list[NamedItem]:
    """The items of a folder or file. Raises DataError that names file and line of what cannot be used."""
    if path.is_dir():
        items = list(_images_of_folder(path))
    elif path.suffix.lower() == ".txt":
        items = list(_texts_of_file(path))
    else:
        items = list(_items_of_table(path))
    if not items:
        raise DataError(f"{path}: there is nothing to embed in it")
    return items


def _images_of_folder(folder: Path) -> Iterator[NamedItem]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_ENDINGS)
    if not paths:
        raise DataError(f"{folder}: no file in it has the ending of an image ({' '.join(sorted(_IMAGE_ENDINGS))})")
    for path in paths:
        yield NamedItem(path.relative_to(folder).as_posix(), Item(images=(ImageSource(path=str(path)),)))


def _texts_of_file(path: Path) -> Iterator[NamedItem]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text file: {error}") from error
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        if not line.strip():
            raise DataError(f"{path}:{number}: the line is empty; each line is one text")
        yield NamedItem(str(number), Item(text=line.removesuffix("\r"), origin=f"{path}:{number}"))


def _items_of_table(path: Path) -> Iterator[NamedItem]:
    rows = load_rows(DataEntry(path=str(path)))
    image_parser = ImageCellParser(str(path.parent))
    for index in range(len(rows)):
        row, origin = rows[index], rows.origin(index)
        name = _name(row.get("id"), origin)
        yield NamedItem(str(rows.number(index)) if name is None else name, _item(row, origin, image_parser))


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


def _item(row: Row, origin: str, image_parser: ImageCellParser) -> Item:
    text, image = row.get("text"), row.get("image")
    if is_absent(text) and is_absent(image):
        raise DataError(f"{origin}: needs a column text or image; the row has {', '.join(row) or 'nothing'}")
    cells = image if isinstance(image, list | tuple) else [] if is_absent(image) else [image]
    images = tuple(image_parser(cell, f"{origin}: image") for cell in cells)
    return Item(text=None if is_absent(text) else checked_text(text, f"{origin}: text"), images=images, origin=origin)
