"""All tiny models, by name; what each group of families adds stands in a file of its own."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.cases import dual, late_interaction, text, towers, vision, vlm
from tests.cases.case import Case

CASES: dict[str, Case] = {
    case.name: case for module in (towers, dual, text, vision, vlm, late_interaction) for case in module.CASES
}


def quick_and_slow(names: Iterable[str]) -> list[Any]:  # Any: pytest's own type of a parameter
    """The names for parametrize; those of near relations of other cases are marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow if CASES[name].near else ()) for name in names]
