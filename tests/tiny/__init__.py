"""Tiny models of the real architectures, written as ordinary Hugging Face folders: random weights, real files.

Every function takes the folder to write and returns it as a str. Weights depend on `seed` only; nothing is downloaded.
"""

from tests.tiny.towers import (
    tiny_bert,
    tiny_clip,
    tiny_dinov2,
    tiny_siglip,
    tiny_timm,
    tiny_vit,
    write_sentence_transformers_files,
)

__all__ = [
    "tiny_bert",
    "tiny_clip",
    "tiny_dinov2",
    "tiny_siglip",
    "tiny_timm",
    "tiny_vit",
    "write_sentence_transformers_files",
]
