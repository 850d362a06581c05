"""Vision encoders beyond ViT, DINOv2 and timm, and poolings other than an architecture's own."""

from tests import tiny
from tests.cases.case import Case
from tests.tiny import vision

CASES = [
    Case("dinov3_vit", "vision", vision.tiny_dinov3_vit, text=False, rounds_pixels=True),
    Case(
        "dinov3_convnext",
        "vision",
        vision.tiny_dinov3_convnext,
        text=False,
        rounds_pixels=True,
        checkpoints=False,
        near=True,
    ),
    Case("mae", "vision", vision.tiny_mae, text=False, near=True),
    Case("siglip_vision", "vision", vision.tiny_siglip_vision, text=False, near=True),
    Case("naflex_vision", "vision", vision.tiny_naflex_vision, text=False, exact=False, near=True),
    Case("clip_vision", "vision", vision.tiny_clip_vision, text=False, opens_in_sentence_transformers=False, near=True),
    Case("convnext", "vision", vision.tiny_convnext, text=False, checkpoints=False),
    Case("swin", "vision", vision.tiny_swin, text=False),
    Case(
        "cls_and_mean",
        "vision",
        tiny.tiny_dinov2,
        settings={"pooling": "cls+mean"},
        text=False,
        opens_in_sentence_transformers=False,
        near=True,
    ),
    Case(
        "gem",
        "vision",
        vision.tiny_convnext,
        settings={"pooling": "gem"},
        text=False,
        opens_in_sentence_transformers=False,
        checkpoints=False,
        near=True,
    ),
]
