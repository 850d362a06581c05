"""Writes the emoji data set as JSONL files of queries and their positives, one file per split and kind of search."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vembed.demo.changes import Change
from vembed.demo.emoji import Emoji
from vembed.demo.pictures import VENDORS, picture_path

Row = dict[str, object]
MakeRows = Callable[[Sequence[Emoji]], list[Row]]
MakeChangeRows = Callable[[Sequence[Change], Path], list[Row]]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def names_to_pictures(emojis: Sequence[Emoji]) -> list[Row]:
    """Name -> the pictures of all vendors."""
    return _rows((emoji, emoji.name, [picture_path(emoji, vendor) for vendor in VENDORS]) for emoji in emojis)


def keywords_to_pictures(emojis: Sequence[Emoji]) -> list[Row]:
    """Keywords -> the pictures of all vendors."""
    pictures = {emoji.key: [picture_path(emoji, vendor) for vendor in VENDORS] for emoji in emojis}
    return _rows((emoji, keyword_text(emoji), pictures[emoji.key]) for emoji in _with_keywords(emojis))


def keywords_to_names(emojis: Sequence[Emoji]) -> list[Row]:
    """Keywords -> name."""
    return _rows((emoji, keyword_text(emoji), [emoji.name]) for emoji in _with_keywords(emojis))


def names_to_twemoji(emojis: Sequence[Emoji]) -> list[Row]:
    """Name -> the first vendor's picture."""
    return _rows((emoji, emoji.name, [picture_path(emoji, "twemoji")]) for emoji in emojis)


def twemoji_to_names(emojis: Sequence[Emoji]) -> list[Row]:
    """The first vendor's picture -> name."""
    return _rows((emoji, picture_path(emoji, "twemoji"), [emoji.name]) for emoji in emojis)


def twemoji_to_openmoji(emojis: Sequence[Emoji]) -> list[Row]:
    """The first vendor's picture -> the second vendor's."""
    return _rows((emoji, picture_path(emoji, "twemoji"), [picture_path(emoji, "openmoji")]) for emoji in emojis)


def changes_to_pictures(changes: Sequence[Change], folder: Path) -> list[Row]:
    """A vendor's picture and what to change -> the same vendor's picture of that; against it and what else it becomes.

    folder: where the pictures lie. A vendor who draws both emoji alike shows no change.
    """
    rows: list[Row] = []
    for change, vendor in _by_vendor(changes):
        base, target, *others = (picture_path(one, vendor) for one in (change.base, change.target, *change.others))
        answer = (folder / target).read_bytes()
        if answer == (folder / base).read_bytes():
            continue
        negatives = [base, *(other for other in others if (folder / other).read_bytes() != answer)]
        rows.append({"query": {"text": change.text, "image": base}, "positive": target, "negatives": negatives})
    return rows


def changes_to_names(changes: Sequence[Change], folder: Path) -> list[Row]:
    """A vendor's picture and what to change -> the name of that, against its own name and what else it becomes."""
    return [
        {
            "query": {"text": change.text, "image": picture_path(change.base, vendor)},
            "positive": change.target.name,
            "negatives": [change.base.name, *(other.name for other in change.others)],
        }
        for change, vendor in _by_vendor(changes)
    ]


def keyword_text(emoji: Emoji) -> str:
    """The keywords as one text."""
    return ", ".join(emoji.keywords)


def _by_vendor(changes: Sequence[Change]) -> Iterator[tuple[Change, str]]:
    return ((change, vendor) for vendor in VENDORS for change in changes)


def _with_keywords(emojis: Sequence[Emoji]) -> list[Emoji]:
    return [emoji for emoji in emojis if emoji.keywords]


def _rows(searches: Iterable[tuple[Emoji, str, list[str]]]) -> list[Row]:
    """One row per query: emoji that share a query text share its row, for all of them are right answers."""
    positives: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    for emoji, query, found in searches:
        positives.setdefault(query, []).extend(found)
        groups.setdefault(query, emoji.key)
    return [
        {"query": query, "positive": found[0] if len(found) == 1 else found, "group": groups[query]}
        for query, found in positives.items()
    ]


TRAINING_ROWS: dict[str, MakeRows] = {
    "names_to_pictures": names_to_pictures,
    "keywords_to_pictures": keywords_to_pictures,
    "keywords_to_names": keywords_to_names,
    "pictures_to_pictures": twemoji_to_openmoji,
}
"""Sets of the train split, by their name."""

EVALUATION_ROWS: dict[str, MakeRows] = {
    "t2i": names_to_twemoji,
    "i2t": twemoji_to_names,
    "i2i": twemoji_to_openmoji,
    "t2t": keywords_to_names,
}
"""Sets of the val and test splits, by their retrieval mode."""

CHANGE_TRAINING_ROWS: dict[str, MakeChangeRows] = {
    "changes_to_pictures": changes_to_pictures,
    "changes_to_names": changes_to_names,
}
"""Sets of the train split whose queries are a picture and a text, by their name."""

CHANGE_EVALUATION_ROWS: dict[str, MakeChangeRows] = {"m2i": changes_to_pictures, "m2t": changes_to_names}
"""Sets of the val and test splits whose queries are a picture and a text, by their retrieval mode."""
