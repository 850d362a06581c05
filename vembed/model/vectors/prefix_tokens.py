"""Prefix tokens: those that a vision architecture puts before an image's patch tokens. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The model_types with a CLS token. DINOv3's ConvNeXt makes one by averaging.
_WITH_CLS = {
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_convnext",
    "dinov3_vit",
    "vit",
    "vit_mae",
}


@dataclass(frozen=True)
class PrefixTokens:
    """cls: True if the first token is a CLS token. others: number of registers or distillation tokens after it."""

    cls: bool = False
    others: int = 0

    @property
    def count(self) -> int:
        """Number of tokens before the patches'."""
        return int(self.cls) + self.others


def prefix_tokens(config: Mapping[str, Any]) -> PrefixTokens:  # Any: config.json
    """The prefix tokens of a transformers architecture: CLS, DINO's registers, DeiT's distillation token.

    >>> prefix_tokens({"model_type": "dinov3_vit", "num_register_tokens": 4})
    PrefixTokens(cls=True, others=4)
    """
    model_type = config.get("model_type")
    others = 1 if model_type == "deit" else int(config.get("num_register_tokens", 0) or 0)
    return PrefixTokens(model_type in _WITH_CLS, others)
