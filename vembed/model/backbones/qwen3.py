"""Qwen3-VL-Embedding: Qwen3-VL, trained to embed at its last token."""

from vembed.model.backbones.vlm_generic import VlmModel
from vembed.model.families.vlm import instruction
from vembed.model.sentence_folder import JsonFiles


class Qwen3VLEmbeddingModel(VlmModel):
    """As every vision-language model; its prompts are instructions, which end in a punctuation mark."""

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The files by which sentence-transformers opens the folder, with the instructions as they are read here."""
        files = super().sentence_files(subfolder)
        prompts = files["config_sentence_transformers.json"]["prompts"]
        prompts |= {side: instruction(prompts[side]) for side in ("query", "document")}
        return files
