"""Whether the ids of a table tell its rows apart, looked up before anything is embedded."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from vembed.errors import DataError
from vembed.utils.untrusted import printable

_SHOWN_LENGTH = 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowId:
    """The id of a row: the one that the row gives, or else its number. origin: where the row stands."""

    name: str
    is_given: bool
    origin: str


def check_ids(ids: Iterable[RowId], path: str) -> None:
    """Raise DataError where the number of a row without an id is the id of another row; warn of ids given twice."""
    given: dict[str, str] = {}  # id -> the origin of the first row that gives it
    numbered: dict[str, str] = {}
    num_repeated, example = 0, ""
    for one in ids:
        if not one.is_given:
            numbered[one.name] = one.origin
        elif one.name in given:
            num_repeated += 1
            example = example or f"{printable(one.name[:_SHOWN_LENGTH])} of {given[one.name]} and {one.origin}"
        else:
            given[one.name] = one.origin
    for name, origin in numbered.items():
        if name in given:
            raise DataError(
                f"{origin}: the row has no id, and its number, {name}, is the id of {given[name]}; give every row an"
                " id, or none"
            )
    if num_repeated:
        _log.warning(
            "%s: %d row%s the id of a row above, as %s: vectors with one id cannot be told apart by it",
            path, num_repeated, "s have" if num_repeated > 1 else " has", example,
        )  # fmt: skip
