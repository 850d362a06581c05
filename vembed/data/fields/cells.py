"""Cells of a table: whether one is empty, its kind in words, and lists that are written as text."""

import ast
import io
import itertools
import json
import math
import tokenize
from collections.abc import Sequence
from typing import Any

from vembed.errors import DataError

Cell = Any  # Any: whatever a file holds


def is_absent(cell: Cell) -> bool:
    """True if the cell holds nothing: null, NaN, "", blanks only, or an empty list. The text "None" is a text.

    >>> [is_absent(cell) for cell in (None, float("nan"), " ", [], "None", 0)]
    [True, True, True, True, False, False]
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    if isinstance(cell, str):
        return not cell or cell.isspace()
    return isinstance(cell, list | tuple) and not cell


def describe_cell(cell: Cell) -> str:
    """The kind of a cell, in words, for an error message.

    >>> describe_cell(None), describe_cell([]), describe_cell(3)
    ('null', 'an empty list', 'a number (3)')
    """
    if cell is None:
        return "null"
    if isinstance(cell, str):
        return "an empty text" if not cell.strip() else f"a text ({cell[:40]!r})"
    if isinstance(cell, bool):
        return f"a truth value ({cell})"
    if isinstance(cell, int | float):
        return f"a number ({cell})"
    if isinstance(cell, list | tuple):
        return f"a list of {len(cell)}" if cell else "an empty list"
    return f"a {type(cell).__name__}"


def parse_list(text: str, where: str) -> Sequence[str]:
    """The texts of a list written as JSON or as Python prints it; any other text is one text.

    >>> parse_list('["a", "b"]', ""), parse_list("['a', 'b']", ""), parse_list("[sic] a", "")
    (['a', 'b'], ['a', 'b'], ['[sic] a'])

    Raises DataError for "['a' 'b']", as numpy prints it: Python reads that as one text "ab".
    """
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return [text]
    values = _parse_literal(stripped)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return [text]
    if _has_adjacent_strings(stripped):
        raise DataError(f"{where}: texts of a list need commas between them: {stripped[:60]}")
    return values


def _parse_literal(text: str) -> Cell:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _has_adjacent_strings(text: str) -> bool:
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    except (tokenize.TokenError, SyntaxError):
        return False
    real = [kind for kind in kinds if kind not in {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT}]
    return any(a == b == tokenize.STRING for a, b in itertools.pairwise(real))
