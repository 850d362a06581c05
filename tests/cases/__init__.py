"""All tiny models, by name; what each group of families adds stands in a file of its own."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from tests.cases import dual, late_interaction, text, towers, vision, vlm
from tests.cases.case import Case

CASES: dict[str, Case] = {
    case.name: case for module in (towers, dual, text, vision, vlm, late_interaction) for case in module.CASES
}


def quick_and_slow(names: Iterable[str], slow: Collection[str] = ()) -> list[Any]:  # Any: pytest's type of a parameter
    """The names for parametrize; those of near relations of other cases, and of `slow`, are marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow if CASES[name].near or name in slow else ()) for name in names]
