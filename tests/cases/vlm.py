"""Vision-language models that embed."""

from pathlib import Path

from tests import tiny
from tests.cases.case import Case

CASES: list[Case] = [
    Case("qwen2_vl", "vlm_generic", tiny.tiny_qwen2_vl),
    Case("qwen2_5_vl", "vlm_generic", tiny.tiny_qwen2_5_vl),
    Case("qwen3_vl", "vlm_generic", tiny.tiny_qwen3_vl),
    Case("qwen3_vl_embedding", "qwen3_vl", lambda folder: tiny.tiny_qwen3_vl(Path(folder) / "Qwen3-VL-Embedding-2B")),
]
