"""The scores that a row gives its documents: a number, or a list of them, the positives' first."""

from collections.abc import Sequence
from decimal import Decimal

from vembed.data.fields.cells import Cell, checked_number, is_absent, is_finite, parsed_json
from vembed.errors import DataError
from vembed.types import RowNeeds


def read_scores(cell: Cell, num_documents: int, needs: RowNeeds, where: str) -> tuple[float, ...]:
    """One finite number per document of the row; none where there are none and nothing needs them.

    Raises DataError when scores are needed and are missing, no numbers, of another number than the documents, or, for
    labels, neither 0 nor 1; for a number that is not finite also where the loss takes scores without reading them.

    >>> read_scores("[1, 0.5]", 2, RowNeeds(scores="any"), ""), read_scores("b", 2, RowNeeds(), "")
    ((1.0, 0.5), ())
    """
    try:
        scores = _numbers(cell, where, needs)
        _check(scores, num_documents, needs, where)
    except DataError:
        if needs.scores == "none" or (needs.scores == "unread" and not _any_infinite(cell)):
            return ()
        raise
    return scores


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


def _any_infinite(cell: Cell) -> bool:
    """True if numbers are meant and one is beyond all bounds: such a column holds no other thing of the same name."""
    cells = cell if isinstance(cell, list | tuple) else [cell]
    return any(isinstance(one, int | float | Decimal) and not is_absent(one) and not is_finite(one) for one in cells)
