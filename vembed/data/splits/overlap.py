"""How much of the data that a run is measured on was also trained on, found while its rows are checked.

    held-out sets read -> their contents                                                       HeldOutContents.add
    other rows read    -> those that may hold one of these: an equal text, a picture as large  .look
    these rows alone   -> pictures read as far as needed to know, then counted                 .overlaps

Contents are equal as they are for the automatic split: texts exactly as written, pictures by their encoded bytes,
wherever they lie; of an item with text and pictures both. Which side an item stands on does not matter. Groups are not
looked at: a class that both hold is meant to be shared.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vembed.data.hashing import image_hash, text_hash
from vembed.data.splits.duplicates import file_content_keys, file_key
from vembed.types import Example, ImageSource, Item

TRAIN, VALIDATION = "train", "validation"
_ROWS_PER_SHARED = 10  # from so many rows per content on, it is the name of a class or a document of a collection

Picture = int | str  # a key of its bytes, or the path of a file that is not read yet
ItemKey = tuple[int | str | None, ...]  # of the text (None: none), then of the pictures


@dataclass(frozen=True)
class Overlap:
    """How many of the rows of a held-out set stand in other rows of the run too.

    role: of the set ("test", "validation"). other: of those rows ("train", "validation"). queries: rows whose query
    stands there. documents: rows of which a positive does. pairs: rows of which both stand in one row there. contents:
    how many different queries and positives these are.
    """

    name: str
    role: str
    other: str
    num_rows: int
    queries: int
    documents: int
    pairs: int
    contents: int

    @property
    def by_design(self) -> bool:
        """True where few contents stand in many rows and none with its partner: class names, or a collection."""
        return self.pairs == 0 and _ROWS_PER_SHARED * self.contents <= self.num_rows

    def __str__(self) -> str:
        was = "trained on" if self.other == TRAIN else "in the validation set, which chooses the checkpoint"
        found = (
            f"{self.role} set {self.name}: of its {self.num_rows} rows {self.pairs} were also {was} (query and document"
            f" in one row), and the query of {self.queries} and a document of {self.documents} were in some row"
        )
        if self.queries or self.pairs:
            return f"{found}; figures of such rows tell what was learned by heart: take them out on one side"
        return f"{found}; that is right where both search one collection, else figures are too good"


@dataclass(frozen=True)
class _Row:
    """The keys of a row's query and positives."""

    query: ItemKey
    positives: tuple[ItemKey, ...]

    @property
    def items(self) -> tuple[ItemKey, ...]:
        return (self.query, *self.positives)

    @property
    def pairs(self) -> Iterator[frozenset[ItemKey]]:
        return (frozenset((self.query, positive)) for positive in self.positives)


@dataclass
class HeldOutContents:
    """The contents of held-out sets, and of the rows elsewhere that may hold some of them."""

    _sets: dict[tuple[str, str], list[_Row]] = field(default_factory=dict)
    _others: list[tuple[str, str, int, _Row]] = field(default_factory=list)
    _texts: set[str] = field(default_factory=set)
    _sizes: set[object] = field(default_factory=set)

    def add(self, role: str, name: str, example: Example, file_sizes: Mapping[str, int]) -> None:
        """Take in a row of a held-out set. file_sizes: of the files that it names."""
        for item in (example.query, *example.positives):
            if item.text is not None:
                self._texts.add(item.text)
            self._sizes.update(_size(source, file_sizes) for source in item.images)
        self._sets.setdefault((role, name), []).append(_row(example))

    def look(self, role: str, name: str, index: int, example: Example, file_sizes: Mapping[str, int]) -> None:
        """Remember a row of another set if it may hold something of those added so far; most rows are passed by."""
        for item in (example.query, *example.positives):  # plain loops: this runs for every training row
            if self._may_hold(item, file_sizes):
                self._others.append((role, name, index, _row(example)))
                return

    def overlaps(self, moved: Mapping[str, Collection[int]] | None = None) -> Iterator[Overlap]:
        """What held-out sets share with other rows; none for a set that shares nothing.

        moved: data set -> numbers of the rows that went from training to validation.
        """
        held_out = {place: list(rows) for place, rows in self._sets.items()}
        parted: dict[str, list[_Row]] = {}
        validation = {name: set(rows) for name, rows in (moved or {}).items()}
        for role, name, index, row in self._others:
            own = VALIDATION if role == TRAIN and index in validation.get(name, ()) else role
            parted.setdefault(own, []).append(row)
        key_of = _picture_keys(row for rows in (*held_out.values(), *parted.values()) for row in rows)
        for other, rows in parted.items():
            known = [_with_keys(row, key_of) for row in rows]
            items, pairs = {item for row in known for item in row.items}, {pair for row in known for pair in row.pairs}
            for (role, name), own_rows in held_out.items():
                if role != other:
                    found = _overlap(name, role, other, [_with_keys(row, key_of) for row in own_rows], items, pairs)
                    yield from [found] if found.contents else []

    def _may_hold(self, item: Item, file_sizes: Mapping[str, int]) -> bool:
        if item.text is not None and item.text not in self._texts:
            return False
        return not item.images or all(_size(source, file_sizes) in self._sizes for source in item.images)


def _overlap(
    name: str,
    role: str,
    other: str,
    rows: Collection[_Row],
    items: Collection[ItemKey],
    pairs: Collection[frozenset[ItemKey]],
) -> Overlap:
    return Overlap(
        name,
        role,
        other,
        len(rows),
        queries=sum(row.query in items for row in rows),
        documents=sum(any(positive in items for positive in row.positives) for row in rows),
        pairs=sum(any(pair in pairs for pair in row.pairs) for row in rows),
        contents=len({item for row in rows for item in row.items if item in items}),
    )


def _row(example: Example) -> _Row:
    return _Row(_item_key(example.query), tuple(map(_item_key, example.positives)))


def _item_key(item: Item) -> ItemKey:
    pictures = (image_hash(source) if source.path is None else source.path for source in item.images)
    return (None if item.text is None else text_hash(item.text), *pictures)


def _with_keys(row: _Row, key_of: Mapping[str, int]) -> _Row:
    """The row with its pictures' keys in the place of their paths."""
    query, *positives = (
        (item[0], *(key_of[part] if isinstance(part, str) else part for part in item[1:])) for item in row.items
    )
    return _Row(query, tuple(positives))


def _picture_keys(rows: Iterable[_Row]) -> dict[str, int]:
    """The key of each picture in a file, equal to that of a picture within the data if both have the same bytes."""
    pictures = {part for row in rows for item in row.items for part in item[1:]}
    paths = sorted(part for part in pictures if isinstance(part, str))
    return {path: file_key(path) for path in paths} if len(paths) < len(pictures) else file_content_keys(paths)


def _size(source: ImageSource, file_sizes: Mapping[str, int]) -> object:
    """What equal pictures have in common, without reading any."""
    if source.path is not None:
        return file_sizes[source.path]
    if source.data is not None:
        return len(source.data)
    return None if source.pil is None else source.pil.size
