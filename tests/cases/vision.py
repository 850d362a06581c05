"""Vision encoders beyond ViT, DINOv2 and timm."""

from tests.cases.case import Case

CASES: list[Case] = []
