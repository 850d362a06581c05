"""The code that a checkpoint brings along: a dual encoder of a class that transformers does not have.

It stands alone, as such files do: transformers copies it into the folder of the model and runs it from there.
"""

from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel


class EvaCLIPConfig(CLIPConfig):
    """Says "clip", as the published EVA-CLIP does, although its weights are no CLIPModel's."""

    model_type = "clip"


class EvaCLIPModel(CLIPModel):
    """CLIP with a norm after each projection; its features are plain tensors."""

    config_class = EvaCLIPConfig

    def __init__(self, config: EvaCLIPConfig) -> None:
        super().__init__(config)
        self.text_norm = nn.LayerNorm(config.projection_dim)
        self.vision_norm = nn.LayerNorm(config.projection_dim)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        output = super().get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return self.text_norm(output.pooler_output)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.vision_norm(super().get_image_features(pixel_values=pixel_values).pooler_output)
