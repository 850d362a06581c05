"""Models with a vector per token."""

from tests import tiny
from tests.cases.case import Case

_NATIVE = "AutoModelForPreTraining"

CASES = [
    Case("colpali", "late_interaction", tiny.tiny_colpali, auto_class=_NATIVE, exact=False),
    Case("colqwen2", "late_interaction", tiny.tiny_colqwen2, auto_class=_NATIVE),
    Case(
        "colmodernvbert",
        "late_interaction",
        tiny.tiny_colmodernvbert,
        auto_class=_NATIVE,
        opens_in_sentence_transformers=False,
    ),
]
