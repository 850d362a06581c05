"""Dual encoders beyond CLIP and SigLIP."""

from tests.cases.case import Case
from tests.tiny import dual

CASES = [
    Case("siglip2", "siglip", dual.tiny_siglip2, near=True),
    Case("naflex", "siglip", dual.tiny_naflex, exact=False),
    Case("metaclip2", "clip", dual.tiny_metaclip2, near=True),
    Case("chinese_clip", "clip", dual.tiny_chinese_clip),
    Case("altclip", "clip", dual.tiny_altclip, near=True),
    Case("own_code", "clip", dual.tiny_own_code, settings={"trust_remote_code": True}),
]
