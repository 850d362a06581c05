"""Dual encoders beyond CLIP and SigLIP."""

from tests.cases.case import Case

CASES: list[Case] = []
