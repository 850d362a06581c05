"""Vision-language models that embed."""

from tests.cases.case import Case

CASES: list[Case] = []
