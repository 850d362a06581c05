"""Text encoders beyond BERT."""

from tests import tiny
from tests.cases.case import Case
from tests.tiny.sentence import Dense, LayerNorm, Normalize, Pooling, sentence_folder


def _layers(folder: str) -> str:
    """BERT whose prompts are not pooled, with layers behind the pooling."""
    pooling = Pooling(24, ("cls", "mean"), include_prompt=False)
    modules = [pooling, Dense(48, 20), LayerNorm(20), Normalize()]
    prompts = {"query": "what is ", "document": "a photo of "}
    return sentence_folder(folder, tiny.tiny_bert(f"{folder}/base"), modules, prompts=prompts)


CASES: list[Case] = [
    Case("sentence", "text", _layers, image=False),
]
