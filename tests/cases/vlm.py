"""Vision-language models that embed."""

from pathlib import Path

from tests import tiny
from tests.cases.case import Case

CASES: list[Case] = [
    Case("qwen2_vl", "vlm_generic", tiny.tiny_qwen2_vl),
    Case("qwen2_5_vl", "vlm_generic", tiny.tiny_qwen2_5_vl, near=True),
    Case("qwen3_vl", "vlm_generic", tiny.tiny_qwen3_vl, near=True),
    Case("smolvlm", "vlm_generic", tiny.tiny_smolvlm),
    Case("idefics3", "vlm_generic", tiny.tiny_idefics3, near=True),
    Case("llava_onevision", "vlm_generic", tiny.tiny_llava_onevision),
    Case("gemma3", "vlm_generic", tiny.tiny_gemma3, exact=False),
    Case("paligemma", "vlm_generic", tiny.tiny_paligemma, exact=False, opens_in_sentence_transformers=False, near=True),
    Case(
        "plain_llava",
        "vlm_generic",
        tiny.tiny_plain_llava,
        settings={"trust_remote_code": True},
        auto_class="AutoModelForCausalLM",
        opens_in_sentence_transformers=False,
    ),
    Case("qwen3_vl_embedding", "qwen3_vl", lambda folder: tiny.tiny_qwen3_vl(Path(folder) / "Qwen3-VL-Embedding-2B")),
]
