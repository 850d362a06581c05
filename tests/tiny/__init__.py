"""Tiny models of the real architectures, written as ordinary Hugging Face folders: random weights, real files.

Every function takes the folder to write and returns it as a str. Weights depend on `seed` only; nothing is downloaded.
"""

from tests.tiny.late_interaction import tiny_colmodernvbert, tiny_colpali, tiny_colqwen2
from tests.tiny.llava import tiny_internvl, tiny_llava, tiny_llava_next
from tests.tiny.towers import (
    tiny_bert,
    tiny_clip,
    tiny_dinov2,
    tiny_siglip,
    tiny_timm,
    tiny_vit,
    write_sentence_transformers_files,
)
from tests.tiny.vlm import (
    tiny_gemma3,
    tiny_idefics3,
    tiny_llava_onevision,
    tiny_paligemma,
    tiny_plain_llava,
    tiny_qwen2_5_vl,
    tiny_qwen2_vl,
    tiny_qwen3_vl,
    tiny_qwen3_vl_moe,
    tiny_smolvlm,
)

__all__ = [
    "tiny_bert",
    "tiny_clip",
    "tiny_colmodernvbert",
    "tiny_colpali",
    "tiny_colqwen2",
    "tiny_dinov2",
    "tiny_gemma3",
    "tiny_idefics3",
    "tiny_internvl",
    "tiny_llava",
    "tiny_llava_next",
    "tiny_llava_onevision",
    "tiny_paligemma",
    "tiny_plain_llava",
    "tiny_qwen2_5_vl",
    "tiny_qwen2_vl",
    "tiny_qwen3_vl",
    "tiny_qwen3_vl_moe",
    "tiny_siglip",
    "tiny_smolvlm",
    "tiny_timm",
    "tiny_vit",
    "write_sentence_transformers_files",
]
