"""The processor of Qwen3-VL-Embedding."""

from vembed.model.families.vlm import instruction
from vembed.model.processors.vlm import VlmProcessor
from vembed.types import Side


class Qwen3VLEmbeddingProcessor(VlmProcessor):
    """As for every vision-language model, with instructions that end in a punctuation mark.

    Images are resized by transformers' image processor. The script on the model card resizes them by Pillow: its
    pixels, and so its embeddings, differ a little.
    """

    def instruction(self, side: Side) -> str:
        """The instruction of the side, ending in a punctuation mark."""
        return instruction(self.spec.prompt(side))
