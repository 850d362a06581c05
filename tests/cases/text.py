"""Text encoders beyond BERT."""

from tests.cases.case import Case

CASES: list[Case] = []
