"""One or two transformers towers: the first families, and models composed of them."""

from tests import tiny
from tests.cases.case import Case

CASES = [
    Case("clip", "clip", tiny.tiny_clip),
    Case("siglip", "siglip", tiny.tiny_siglip),
    Case("bert", "text", lambda folder: tiny.tiny_bert(folder, pooling="mean"), image=False),
    Case("vit", "vision", tiny.tiny_vit, text=False),
    Case("dinov2", "vision", tiny.tiny_dinov2, text=False),
    Case("timm", "vision", tiny.tiny_timm, text=False, lora_target_modules=("conv_head", "conv_pwl")),
    Case(
        "composed",
        "composed",
        towers=("bert", "timm"),
        opens_in_sentence_transformers=False,
        lora_target_modules=("query", "conv_pwl"),
    ),
    Case("clip_gated", "clip", tiny.tiny_clip, {"fusion": "gated"}, near=True),
    Case("clip_attention", "clip", tiny.tiny_clip, {"fusion": "attention"}, near=True),
    Case(
        "vit_pair_mlp",
        "composed",
        settings={"fusion": "mlp"},
        towers=("bert", "vit"),
        opens_in_sentence_transformers=False,
        near=True,
    ),
    Case("vit_pair", "composed", towers=("bert", "vit"), opens_in_sentence_transformers=False, near=True),
]
