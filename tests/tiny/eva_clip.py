"""The code that a checkpoint brings along: a dual encoder of a class that transformers does not have.

It stands alone, as such files do: transformers copies it into the folder of the model and runs it from there. Like the
published EVA-CLIP it says that it is a "clip", and gives features by `encode_text` and `encode_image`.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPTextModel, CLIPVisionModel, PreTrainedModel


class EvaCLIPConfig(CLIPConfig):
    model_type = "clip"


class EvaCLIPModel(PreTrainedModel):
    """CLIP with a bias in its visual projection; its features are plain tensors."""

    config_class = EvaCLIPConfig

    def __init__(self, config: EvaCLIPConfig) -> None:
        super().__init__(config)
        self.text_model = CLIPTextModel(config.text_config)
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return self.text_projection(output.pooler_output)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)
