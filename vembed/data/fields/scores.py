"""The scores that a row gives its documents: a number, or a list of them, the positives' first."""

import re
from collections.abc import Sequence

from vembed.data.fields.cells import Cell, checked_number, is_absent, parse_literal, parsed_json
from vembed.errors import DataError
from vembed.types import RowNeeds

_WORDS = {"true": True, "false": False}
_DIGITS = re.compile(r"[\s\d.,+-]*\d[\s\d.,%+-]*")


def read_scores(
    cell: Cell, num_positives: int, num_documents: int, needs: RowNeeds, where: str, *, is_mapped: bool = False
) -> tuple[float, ...]:
    """One finite number per document of the row; none where there are none and nothing needs them.

    is_mapped: the column was named by a column_mapping, so that scores are meant.
    Raises DataError when scores are needed and are missing, no numbers, of another number than the documents, or, for
    labels, neither 0 nor 1. Where the loss takes every positive as relevant without reading scores: when they are no
    numbers, or say of a positive that it is none. In evaluation: when they say so, and are not one for each document.

    >>> read_scores("[1, 0.5]", 1, 2, RowNeeds(scores="any"), ""), read_scores("b", 1, 2, RowNeeds(), "")
    ((1.0, 0.5), ())
    """
    if needs.scores in ("any", "binary"):
        scores = _numbers(cell, where, needs)
        _check(scores, num_documents, needs, where)
        return scores
    return () if is_absent(cell) else _unneeded(cell, num_positives, num_documents, needs, where, is_mapped)


def number_of_word(cell: Cell) -> Cell:
    """The cell of a file that has texts only, with the truth values that programs write there as what they are.

    >>> [number_of_word(cell) for cell in ("False", " TRUE", "0.5", "[True, False]")]
    [False, True, '0.5', [True, False]]
    """
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    written = parse_literal(text) if text.startswith("[") else None
    return _WORDS.get(text.lower(), cell) if written is None else written


def _unneeded(
    cell: Cell, num_positives: int, num_documents: int, needs: RowNeeds, where: str, is_mapped: bool
) -> tuple[float, ...]:
    unread = needs.scores == "unread"
    try:
        scores = _numbers(cell, where, needs)
    except DataError as error:
        if unread:
            raise DataError(
                f"{error}; this loss_type reads no scores, but a score may say that the positive is not relevant, so it"
                " has to be clear: rename the column if it holds something else"
            ) from None
        if needs.scores_say_relevance and (is_mapped or _is_of_digits(cell)):
            raise
        return ()
    if unread:
        refuse_unread(scores, num_positives, where)
    if len(scores) == num_documents:
        return scores
    if needs.scores_say_relevance and any(score <= 0 for score in scores[:num_positives]):
        _check(scores, num_documents, needs, where)
    return ()


def _is_of_digits(cell: Cell) -> bool:
    """True for a text that means a number and is none, as of a decimal comma."""
    return isinstance(cell, str) and _DIGITS.fullmatch(cell) is not None


def refuse_unread(scores: Sequence[float], num_positives: int, where: str) -> None:
    """Raise DataError when a row's scores, the positives' first, say of a positive that it is none: 0 or below."""
    wrong = [score for score in scores[:num_positives] if score <= 0]
    if wrong:
        raise DataError(
            f"{where}: {wrong[0]:g} says that the positive is not relevant, but this loss_type reads no scores and"
            " would take it as relevant; choose cosent or contrastive (or, if scores are a teacher's, margin_mse or"
            " use_distillation: true), move the document to negatives, or rename the column"
        )


def _check(scores: Sequence[float], num_documents: int, needs: RowNeeds, where: str) -> None:
    if len(scores) != num_documents:
        raise DataError(f"{where}: has {len(scores)} numbers for the row's {num_documents} documents; give one each")
    wrong = [score for score in scores if needs.scores == "binary" and score not in (0, 1)]
    if wrong:
        raise DataError(f"{where}: a label is 0 or 1, not {wrong[0]:g}")


def _numbers(cell: Cell, where: str, needs: RowNeeds) -> tuple[float, ...]:
    if is_absent(cell):
        found = "is missing (NaN)" if isinstance(cell, float) else "is missing"
        if needs.scores_say_relevance:
            raise DataError(f"{where}: {found}; the loss goes by a number for each document of a row")
        raise DataError(
            f"{where}: {found}; the loss goes by a teacher's number for each document of a row (distillation has"
            " teacher_model_name and teacher_embeddings too)"
        )
    if isinstance(cell, str):
        cell = parsed_json(cell, where, "a number or a list of numbers")
    cells = cell if isinstance(cell, list | tuple) else [cell]
    return tuple(checked_number(one, where) for one in cells)
