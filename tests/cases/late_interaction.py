"""Models with a vector per token."""

from tests import tiny
from tests.cases.case import Case
from tests.tiny.language import tiny_llama
from tests.tiny.text import tiny_modernbert

_NATIVE = "AutoModelForPreTraining"

_COLQWEN = {"encoder_mode": "colqwen", "projection_dim": 16}
_COLBERT = {"encoder_mode": "colbert", "projection_dim": 16}

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
    Case("colbert", "late_interaction", tiny.tiny_bert, settings=_COLBERT, image=False),
    Case(
        "colbert_modern",
        "late_interaction",
        tiny_modernbert,
        settings=_COLBERT | {"num_query_tokens": 14},
        image=False,
        near=True,
    ),
    Case(
        "colbert_llama",
        "late_interaction",
        tiny_llama,
        settings=_COLBERT | {"num_query_tokens": 14},
        image=False,
        near=True,
    ),
    Case(
        "colqwen",
        "late_interaction",
        tiny.tiny_qwen2_vl,
        settings=_COLQWEN | {"num_query_tokens": 8, "document_tokens": 9},
        opens_in_sentence_transformers=False,
        near=True,
    ),
    Case("colqwen3", "late_interaction", tiny.tiny_qwen3_vl, settings=_COLQWEN | {"mask_prompts": False}, near=True),
]
