"""Models with a vector per token."""

from tests.cases.case import Case

CASES: list[Case] = []
