"""Rows into examples: which column holds what, by `column_mapping` and `retrieval_mode`.

The mode alone decides what a field is: in `t2i` a query is text even if it reads "a/b.png", and a positive is an
image. Nothing is guessed, substituted or dropped: a row that does not give what the mode asks for is a `DataError`
that names the row, the field, and what would be right. An optional field that is null, missing or empty is absent.

| field | holds |
|---|---|
| `query`, `positive` | text, an image, or {"text": ..., "image": ...}; a list of positives is several |
| `query_image`, `positive_image` | the image, where text and image are columns of their own |
| `negatives`, `negative_images` | a list like `positive`, or in columns negative_1, negative_2, ...; optional |
| `ignore` | a list like `negatives`: documents that are neither for this query; optional |
| `group` (or `class`) | rows of the same group are each other's positives; optional |
| `score` | a number, or a list with one for each positive and negative; optional unless the loss needs it |
| `query_embedding`, `positive_embeddings`, `negative_embeddings` | a teacher's, read with `teacher_embeddings: true` |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from vembed.data.fields.cells import checked_number, checked_text, describe_cell, is_absent, parse_list
from vembed.data.fields.columns import Columns, check_column_mapping
from vembed.data.fields.embeddings import read_embeddings
from vembed.data.fields.images import ImageCellParser
from vembed.data.fields.scores import number_of_word, read_scores
from vembed.data.hashing import text_hash
from vembed.errors import DataError
from vembed.registry import nearest_names
from vembed.types import Example, ImageSource, Item, RowEmbeddings, RowNeeds
from vembed.utils.untrusted import printable

Row = Mapping[str, Any]  # Any: a cell holds whatever the file holds; this module is where it gets a type

_KIND_NAMES = {"t": "text", "i": "image", "m": "text and image"}


@dataclass(frozen=True)
class RowReader:
    """Turns a row into an Example. `mode` is "t2i" and the like; `columns` maps our field to the data's column, or to
    several, whose cells are joined to a list; empty ones among them are left out.

    `lists_in_text`: cells of `positive` and `negatives` that are written as a list are one (CSV has no lists).
    `needs`: what every row must have beyond query and positive.
    """

    mode: str
    columns: Columns = field(default_factory=dict)
    image_parser: ImageCellParser = field(default_factory=ImageCellParser)
    lists_in_text: bool = False
    needs: RowNeeds = field(default_factory=RowNeeds)

    def __post_init__(self) -> None:
        check_column_mapping(self.columns)

    def __call__(self, row: Row, origin: str) -> Example:
        """The example of `row`. Raises DataError when a required field is missing or any field is of a wrong kind."""
        query = self._items(row, "query", origin)
        positives = self._items(row, "positive", origin)
        if len(query) != 1:
            raise DataError(f"{origin}: query: a row has one query, this one has {len(query)}")
        negatives = self._negatives(row, origin)
        group = self._group(row, origin)
        if self.needs.groups and group is None:
            raise DataError(f"{origin}: {self._label('group')}: is missing; the loss needs the class of every row")
        self._check_num_documents(len(positives), len(negatives), origin)
        scores = self._scores(row, len(positives), len(positives) + len(negatives), origin)
        return Example(
            query[0],
            positives,
            negatives,
            group,
            origin,
            ignored=self._ignored(row, origin),
            scores=scores,
            embeddings=self._embeddings(row, len(positives), len(negatives), origin),
        )

    def _check_num_documents(self, num_positives: int, num_negatives: int, origin: str) -> None:
        """Refuse a row with fewer documents than the loss needs."""
        where = f"{origin}: {self._label('negatives')}"
        if self.needs.negatives and not num_negatives:
            raise DataError(f"{where}: is missing; the loss needs explicit negatives")
        if num_positives + num_negatives < self.needs.num_documents:
            raise DataError(f"{where}: is missing; the loss compares documents of a row, and this one has a single one")

    def _scores(self, row: Row, num_positives: int, num_documents: int, origin: str) -> tuple[float, ...]:
        where = f"{origin}: {self._label('score')}"
        cell = self._cell(row, "score", origin)
        if self.lists_in_text:
            cell = number_of_word(cell)
        return read_scores(cell, num_positives, num_documents, self.needs, where, is_mapped="score" in self.columns)

    def _embeddings(self, row: Row, num_positives: int, num_negatives: int, origin: str) -> RowEmbeddings | None:
        if not self.needs.embeddings:
            return None
        counts = {"query_embedding": 1, "positive_embeddings": num_positives, "negative_embeddings": num_negatives}
        cells = {name: self._cell(row, name, origin) for name in counts}
        return read_embeddings(cells, counts, {name: f"{origin}: {self._label(name)}" for name in counts})

    def columns_of(self, field_name: str) -> tuple[str, ...]:
        """The data's columns that hold `field_name`."""
        columns = self.columns.get(field_name, field_name)
        return (columns,) if isinstance(columns, str) else tuple(columns)

    def _cell(self, row: Row, field_name: str, origin: str) -> Any:
        columns = self.columns.get(field_name, field_name)
        if isinstance(columns, str):
            return row.get(columns)
        return [one for column in columns for one in self._as_list(row.get(column), field_name, origin)]

    def _items(self, row: Row, side: str, origin: str) -> tuple[Item, ...]:
        """The items of one required side (query or positive), at least one."""
        kind = self.mode[0] if side == "query" else self.mode[2]
        texts, images = self._cell(row, side, origin), self._cell(row, f"{side}_image", origin)
        cell = images if kind == "i" and not is_absent(images) else texts
        cells = self._as_list(cell, side, origin)
        if not cells or (len(cells) == 1 and is_absent(cells[0])):
            raise DataError(self._missing(row, side, kind, origin))
        if kind != "m" or is_absent(images):
            return self._read_items(cells, kind, side, origin)
        return self._text_image_items(cells, images, side, origin)

    def _negatives(self, row: Row, origin: str) -> tuple[Item, ...]:
        texts, images = self._cell(row, "negatives", origin), self._cell(row, "negative_images", origin)
        kind = self.mode[2]
        cell = images if kind == "i" and not is_absent(images) else texts
        cells = self._as_list(cell, "negatives", origin)
        if kind != "m" or is_absent(images):
            return self._read_items(cells, kind, "negatives", origin)
        return self._text_image_items(cells, images, "negatives", origin)

    def _ignored(self, row: Row, origin: str) -> tuple[Item, ...]:
        cells = self._as_list(self._cell(row, "ignore", origin), "ignore", origin)
        return self._read_items(cells, self.mode[2], "ignore", origin)

    def _text_image_items(self, texts: Sequence[Any], images: Any, side: str, origin: str) -> tuple[Item, ...]:
        """Items of a text column and an image column, one image (or list of images) per text."""
        per_text = [images] if len(texts) == 1 else images
        if not isinstance(per_text, list | tuple) or len(per_text) != len(texts):
            raise DataError(
                f"{origin}: {self._label(side)}: {len(texts)} texts need a list of as many images beside them"
            )
        cells = [{"text": text, "image": image} for text, image in zip(texts, per_text, strict=True)]
        return self._read_items(cells, "m", side, origin)

    def _read_items(self, cells: Sequence[Any], kind: str, side: str, origin: str) -> tuple[Item, ...]:
        label = self._label(side)
        names = [label] if len(cells) == 1 else [f"{label}[{i}]" for i in range(len(cells))]
        named = zip(cells, names, strict=True)
        return tuple(self._read_item(cell, kind, f"{origin}: {name}", origin) for cell, name in named)

    def _read_item(self, cell: Any, kind: str, where: str, origin: str) -> Item:
        text, image = _text_and_image(cell, kind, where)
        self._refuse_extra(text, image, kind, where)
        return Item(
            text=checked_text(text, where) if kind != "i" else None,
            images=self._images(image, where) if kind != "t" else (),
            origin=origin,
        )

    def _refuse_extra(self, text: Any, image: Any, kind: str, where: str) -> None:
        extra = "an image" if kind == "t" and not is_absent(image) else "a text" if kind == "i" and text else None
        if extra:
            raise DataError(
                f"{where}: holds {extra} too, but retrieval_mode {self.mode} wants {_KIND_NAMES[kind]} here;"
                " use m for text and image"
            )

    def _images(self, cell: Any, where: str) -> tuple[ImageSource, ...]:
        cells = cell if isinstance(cell, list | tuple) else [cell]
        if not cells:
            raise DataError(f"{where}: the image is missing")
        return tuple(self.image_parser(one, where) for one in cells)

    def _as_list(self, cell: Any, side: str, origin: str) -> Sequence[Any]:
        if is_absent(cell):
            return []
        if isinstance(cell, str) and self.lists_in_text and side != "query":
            return parse_list(cell, f"{origin}: {self._label(side)}")
        return cell if isinstance(cell, list | tuple) else [cell]

    def _group(self, row: Row, origin: str) -> int | None:
        value = self._cell(row, "group", origin)
        if is_absent(value) and "group" not in self.columns:
            value = row.get("class")
        if is_absent(value):
            return None
        where = f"{origin}: {self._label('group')}"
        if isinstance(value, float | Decimal):
            number = checked_number(value, where)
            value = int(value) if value == int(number) else value  # whole numbers with gaps are read as floats
        if not isinstance(value, str | int | float | Decimal):
            raise DataError(f"{where}: a group is a text or a number, not {describe_cell(value)}")
        return text_hash(str(value))

    def _label(self, field_name: str) -> str:
        columns = self.columns_of(field_name)
        if columns == (field_name,):
            return field_name
        return f"{field_name} (column{'s' * (len(columns) > 1)} {', '.join(map(repr, columns))})"

    def _missing(self, row: Row, side: str, kind: str, origin: str) -> str:
        columns = self.columns_of(side)
        for column in columns:
            if column in row:
                found = f"{origin}: {self._label(side)}: is {describe_cell(row[column])}"
                return f"{found}; retrieval_mode {self.mode} needs {_kind_with_article(kind)} here"
        near = nearest_names(columns[0], row)
        hint = f"; is it {near[0]!r}?" if near else "."
        return printable(
            f"{origin}: {self._label(side)}: is missing{hint} The row has: {', '.join(map(str, row)) or 'nothing'}"
            f" (column_mapping: {{{side}: NAME}} tells which column it is)"
        )


def _text_and_image(cell: Any, kind: str, where: str) -> tuple[Any, Any]:
    """Text and image of a cell that is one of the two, or a dict that names them."""
    if isinstance(cell, Mapping) and ("text" in cell or "image" in cell):
        unknown = sorted(set(cell) - {"text", "image"})
        if unknown:
            raise DataError(f"{where}: unknown key {unknown[0]!r}; an item has 'text' and 'image'")
        return cell.get("text"), cell.get("image")
    if kind == "m":
        raise DataError(f'{where}: needs text and image: {{"text": ..., "image": ...}}, or an image column beside it')
    return (cell, None) if kind == "t" else (None, cell)


def _kind_with_article(kind: str) -> str:
    return {"t": "a text", "i": "an image", "m": "text and image"}[kind]
