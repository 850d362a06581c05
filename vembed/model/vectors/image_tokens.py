"""Which tokens a vision architecture puts before those of an image's patches. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# By model_type: those whose first token stands for the whole image. DINOv3's ConvNeXt makes one by averaging.
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
class LeadingTokens:
    """cls: whether the first token stands for the whole image. others: how many follow that are no patch's either."""

    cls: bool = False
    others: int = 0

    @property
    def count(self) -> int:
        """How many tokens come before those of the patches."""
        return int(self.cls) + self.others


def leading_tokens(config: Mapping[str, Any]) -> LeadingTokens:  # Any: config.json
    """The leading tokens of a transformers architecture: CLS, DINO's registers, DeiT's distillation token.

    >>> leading_tokens({"model_type": "dinov3_vit", "num_register_tokens": 4})
    LeadingTokens(cls=True, others=4)
    """
    model_type = config.get("model_type")
    others = 1 if model_type == "deit" else int(config.get("num_register_tokens", 0) or 0)
    return LeadingTokens(model_type in _WITH_CLS, others)
