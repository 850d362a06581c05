"""Text encoders beyond BERT."""

from pathlib import Path

from tests import tiny
from tests.cases.case import Case
from tests.tiny import language, text
from tests.tiny.saving import write_json
from tests.tiny.sentence import Dense, LayerNorm, Normalize, Pooling, sentence_folder


def _layers(folder: str) -> str:
    """BERT whose prompts are not pooled, with layers behind the pooling."""
    pooling = Pooling(24, ("cls", "mean"), include_prompt=False)
    modules = [pooling, Dense(48, 20), LayerNorm(20), Normalize()]
    prompts = {"query": "what is ", "document": "a photo of "}
    return sentence_folder(folder, tiny.tiny_bert(f"{folder}/base"), modules, prompts=prompts)


def _bge(folder: str) -> str:
    """A BERT by the name of a BGE, whose prompt is nowhere in its files."""
    made = tiny.tiny_bert(f"{folder}/bge-small-en-v1.5", pooling="cls", length=96)
    write_json(Path(made) / "sentence_bert_config.json", {"max_seq_length": 80, "do_lower_case": True})
    return made


def _e5(folder: str) -> str:
    """A BERT by the name of an E5, with nothing but transformers' files."""
    return tiny.tiny_bert(f"{folder}/e5-small-v2")


CASES: list[Case] = [
    Case("sentence", "text", _layers, image=False),
    Case("bge", "text", _bge, image=False, near=True),
    Case("e5", "text", _e5, image=False, near=True),
    Case("mpnet", "text", text.tiny_mpnet, image=False, checkpoints=False),
    Case("roberta", "text", text.tiny_roberta, image=False, near=True),
    Case("xlm_roberta", "text", text.tiny_xlm_roberta, image=False, near=True),
    Case("distilbert", "text", text.tiny_distilbert, image=False, near=True),
    Case("modernbert", "text", text.tiny_modernbert, image=False),
    Case("gte", "text", text.tiny_gte, image=False, near=True),
    Case("gte_own_code", "text", text.tiny_new, {"trust_remote_code": True}, image=False, near=True),
    Case("nomic_bert", "text", text.tiny_nomic_bert, image=False, near=True),
    Case("t5", "text", text.tiny_t5, image=False, auto_class="T5EncoderModel"),
    Case("qwen3_embedding", "text", language.tiny_qwen3_embedding, image=False),
    Case("embeddinggemma", "text", language.tiny_embeddinggemma, image=False, exact=False),
    Case("llama", "text", language.tiny_llama, {"encoder_mode": "text"}, image=False),
    Case("mistral", "text", language.tiny_mistral, {"encoder_mode": "text"}, image=False, near=True),
    Case("qwen2", "text", language.tiny_qwen2, {"encoder_mode": "text"}, image=False, near=True),
]
