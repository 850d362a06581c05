"""Tiny language models that embed: the real architectures with their real tokenizers; texts end after 32 tokens."""

from pathlib import Path

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from tests.tiny.saving import save
from tests.tiny.sentence import Dense, Normalize, Pooling, sentence_folder
from tests.tiny.text_tokenizers import TEXT_LENGTH, gemma_tokenizer, llama_tokenizer, qwen3_embedding_tokenizer

WIDTH = 24
QWEN3_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
}
_SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "intermediate_size": 40,
}


def tiny_qwen3(folder: str | Path, seed: int = 0, length: int = TEXT_LENGTH) -> str:
    """Qwen3ForCausalLM with the tokenizer of Qwen3-Embedding, as it lies beside that model's files."""
    config = transformers.Qwen3Config(**_SHAPE, max_position_embeddings=length, tie_word_embeddings=True)
    return _written(folder, transformers.Qwen3ForCausalLM, config, qwen3_embedding_tokenizer(), seed)


def tiny_qwen3_embedding(folder: str | Path, seed: int = 0) -> str:
    """Qwen3-Embedding: last token, unit length, an instruction before queries."""
    base = tiny_qwen3(f"{folder}/base", seed, length=128)
    modules = [Pooling(WIDTH, "lasttoken"), Normalize()]
    return sentence_folder(folder, base, modules, prompts={"query": QWEN3_QUERY, "document": ""})


def tiny_gemma3_text(folder: str | Path, seed: int = 0) -> str:
    """Gemma3TextModel that attends in both directions, one layer over all tokens and one over a window of them."""
    config = transformers.Gemma3TextConfig(
        **_SHAPE,
        max_position_embeddings=TEXT_LENGTH,
        use_bidirectional_attention=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=12,
    )
    return _written(folder, transformers.Gemma3TextModel, config, gemma_tokenizer(), seed)


def tiny_embeddinggemma(folder: str | Path, seed: int = 0) -> str:
    """EmbeddingGemma: mean over both directions, two layers without bias or activation, prompts on both sides."""
    plain = {"bias": False, "activation_function": nn.Identity()}
    modules = [Pooling(WIDTH, "mean"), Dense(WIDTH, 96, **plain), Dense(96, WIDTH, **plain), Normalize()]
    return sentence_folder(folder, tiny_gemma3_text(f"{folder}/base", seed), modules, prompts=GEMMA_PROMPTS)


def tiny_llama(folder: str | Path, seed: int = 0) -> str:
    """LlamaForCausalLM, whose tokenizer ends no text and has no token to pad with."""
    config = transformers.LlamaConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH)
    return _written(folder, transformers.LlamaForCausalLM, config, llama_tokenizer(), seed)


def tiny_mistral(folder: str | Path, seed: int = 0) -> str:
    """MistralModel with a window of 8 tokens."""
    config = transformers.MistralConfig(**_SHAPE, max_position_embeddings=TEXT_LENGTH, sliding_window=8)
    return _written(folder, transformers.MistralModel, config, llama_tokenizer(), seed)


def tiny_qwen2(folder: str | Path, seed: int = 0) -> str:
    """Qwen2Model."""
    shape = {name: value for name, value in _SHAPE.items() if name != "head_dim"}
    config = transformers.Qwen2Config(**shape, max_position_embeddings=TEXT_LENGTH)
    return _written(folder, transformers.Qwen2Model, config, qwen3_embedding_tokenizer(), seed)


def _written(
    folder: str | Path, model_class: type, config: object, tokenizer: PreTrainedTokenizerBase, seed: int
) -> str:
    config.vocab_size = len(tokenizer)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    save(model_class, config, folder, seed)
    tokenizer.save_pretrained(folder)
    return str(folder)
