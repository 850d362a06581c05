"""Cells of a table: whether one is empty, its kind in words, the text or number it is, and lists written as text."""

import ast
import io
import itertools
import json
import math
import re
import tokenize
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np

from vembed.errors import DataError
from vembed.utils.untrusted import library_errors

Cell = Any  # Any: whatever a file holds
_LONG_BITS = 200
# What Python, numpy, pandas and JSON print in a list for nothing, where literal_eval does not know it.
_UNQUOTED_NULL = re.compile(r"([\[,]\s*)(?:nan|null|<NA>|NaT)(?=\s*[,\]])")
_NULLS = frozenset({"None", "nan", "null", "NaT"})
_NO_TOKENS = frozenset({tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER})


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

    >>> describe_cell(None), describe_cell([]), describe_cell(3), describe_cell(b"ab")
    ('null', 'an empty list', 'a number (3)', "bytes (b'ab')")
    """
    if isinstance(cell, str):
        return "an empty text" if not cell.strip() else f"a text ({cell[:40]!r})"
    if isinstance(cell, bool):
        return f"a truth value ({cell})"
    if isinstance(cell, int | float | Decimal):
        return f"a number ({_short(cell)})"
    if isinstance(cell, bytes):
        return f"bytes ({cell[:20]!r})" if cell else "no bytes"
    if isinstance(cell, list | tuple):
        return f"a list of {len(cell)}" if cell else "an empty list"
    return "null" if cell is None else f"a {type(cell).__name__}"


def checked_text(cell: Cell, where: str) -> str:
    """The text in the cell. Raises DataError when it holds none, or half of a surrogate pair, which is no character.

    >>> checked_text("\\ud800", "x.jsonl:1: query")
    Traceback (most recent call last):
    vembed.errors.DataError: x.jsonl:1: query: the text holds half of a surrogate pair, which is no character: '\\ud800'
    """
    if not isinstance(cell, str):
        hint = "; save the column as text" if isinstance(cell, bytes) else ""
        raise DataError(f"{where}: should be a text, but is {describe_cell(cell)}{hint}")
    if not cell.strip():
        raise DataError(f"{where}: the text is empty")
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: the text holds half of a surrogate pair, which is no character:"
                f" {cell[max(0, error.start - 20) : error.start + 1]!r}"
            ) from None
    return cell


def checked_number(cell: Cell, where: str) -> float:
    """The finite number in the cell; a truth value counts 1 or 0. Raises DataError for anything else.

    >>> checked_number(10**400, "x.jsonl:1: score")
    Traceback (most recent call last):
    vembed.errors.DataError: x.jsonl:1: score: should be a finite number, not a whole number of 401 digits
    """
    if not isinstance(cell, int | float | Decimal | np.integer | np.floating | np.bool_):
        raise DataError(f"{where}: should be a number, but is {describe_cell(cell)}")
    if not is_finite(cell):
        raise DataError(f"{where}: should be a finite number, not {_short(cell)}")
    return float(cell)


def is_finite(number: Cell) -> bool:
    """True if the number is neither NaN nor beyond what a float can hold.

    >>> is_finite(10**300), is_finite(10**400)
    (True, False)
    """
    try:
        return math.isfinite(number)
    except (OverflowError, ValueError):  # too large, or a Decimal that is a signalling NaN
        return False


def parsed_json(text: str, where: str, wanted: str) -> Cell:
    """What a text writes in JSON. Raises DataError that says what is wanted when it writes nothing."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise DataError(f"{where}: should be {wanted}, but is {describe_cell(text)}") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        raise DataError(f"{where}: should be {wanted}, but is no JSON that can be read: {text[:40]!r}...") from None


def _short(number: Cell) -> str:
    """A number as it is written, unless that takes lines."""
    if isinstance(number, int) and number.bit_length() > _LONG_BITS:
        return f"a whole number of {int(number.bit_length() * math.log10(2)) + 1} digits"
    return str(number)


def parse_list(text: str, where: str) -> Sequence[Cell]:
    """The cells of a list written as JSON or as Python prints it; any other text, or one of numbers only, is one text.

    >>> parse_list('["a", null]', ""), parse_list("['a', nan]", ""), parse_list("[sic] a", "")
    (['a', None], ['a', None], ['[sic] a'])

    Raises DataError for "['a' 'b']", as numpy prints it: Python reads that as one text "ab".
    """
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return [text]
    values = parse_literal(stripped)
    if values is None:
        values = parse_literal(stripped := _UNQUOTED_NULL.sub(r"\1None", stripped))
    if values is not None and (not isinstance(values, list) or _is_of_numbers(values)):
        return [text]
    if _lacks_commas(stripped):
        raise DataError(f"{where}: texts of a list need commas between them: {stripped[:60]}")
    return [text] if values is None else values


def _is_of_numbers(values: Sequence[Cell]) -> bool:
    """True for what a text in brackets may be by chance: "[2020]", a reference "[1, 2]"."""
    return bool(values) and all(
        _is_of_numbers(value) if isinstance(value, list) else isinstance(value, int | float) and not is_absent(value)
        for value in values
    )


def parse_literal(text: str) -> Cell:
    """What a text writes as JSON or as Python prints it; None where it writes nothing."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(DataError), library_errors(DataError, "no list", or_too_large=True):
            return parse(text)
    return None


def _lacks_commas(text: str) -> bool:
    """True for a list of texts, and of numbers and nulls among them, that has nothing between two of these."""
    tokens: list[tokenize.TokenInfo] = []
    with suppress(DataError), library_errors(DataError, "no Python", or_too_large=True):
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    real = [token for token in tokens if token.type not in _NO_TOKENS]
    values = [token.type in (tokenize.STRING, tokenize.NUMBER) or token.string in _NULLS for token in real]
    texts = any(token.type == tokenize.STRING for token in real)
    only_values = all(value or token.string in "[]{}:,-" for value, token in zip(values, real, strict=True))
    return texts and only_values and any(a and b for a, b in itertools.pairwise(values))
