"""A model in the way of the first LLaVA (and so of Yi-VL): a vision tower, two layers, a language model."""

from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast


class PlainLlavaConfig(PretrainedConfig):
    model_type = "plain_llava"
    sub_configs: ClassVar = {"text_config": AutoConfig, "vision_config": AutoConfig}

    def __init__(self, text_config=None, vision_config=None, image_token_id=0, **kwargs):
        self.text_config = LlamaConfig(**_plain(text_config))
        self.vision_config = SiglipVisionConfig(**_plain(vision_config))
        self.image_token_id = image_token_id
        super().__init__(**kwargs)


class PlainLlavaForCausalLM(PreTrainedModel):
    config_class = PlainLlavaConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        width = config.text_config.hidden_size
        self.mm_projector = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.model = LlamaModel(config.text_config)
        self.lm_head = nn.Linear(width, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, pixel_values=None, output_hidden_states=None, **kwargs):
        embeddings = self.model.embed_tokens(input_ids)
        if pixel_values is not None:
            patches = self.vision_tower(pixel_values).last_hidden_state
            places = (input_ids == self.config.image_token_id).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(places, self.mm_projector(patches).to(embeddings.dtype))
        output = self.model(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state
        states = (embeddings, hidden) if output_hidden_states else None
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), hidden_states=states)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(std=0.02)


def _plain(config):
    return config if isinstance(config, dict) else config.to_dict() if config is not None else {}
