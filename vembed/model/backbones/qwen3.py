"""Qwen3-VL-Embedding: Qwen3-VL, trained to embed at its last token."""

from typing import ClassVar

from vembed.model.backbones.vlm_generic import VlmModel
from vembed.model.families.vlm import instruction
from vembed.model.folder.find import JsonFiles


class Qwen3VLEmbeddingModel(VlmModel):
    """A vision-language model whose prompts are instructions, which end in a punctuation mark."""

    start_temperature: ClassVar[float] = 0.03  # it was trained with a sharp softmax

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """As of any vision-language model, with instructions that end in a punctuation mark."""
        files = super().sentence_files(subfolder)
        prompts = files["config_sentence_transformers.json"]["prompts"]
        prompts |= {side: instruction(prompts[side]) for side in ("query", "document")}
        return files
