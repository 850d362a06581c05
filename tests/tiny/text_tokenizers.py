"""Real tokenizers of text encoders with small vocabularies, made of a few sentences, the same in every process."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GemmaTokenizer,
    LlamaTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from tests.tiny.tokenizers import CORPUS, unigrams, word_pieces

TEXT_LENGTH = 32
_SIZE = 400
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]


def mpnet_tokenizer() -> PreTrainedTokenizerBase:
    vocab = word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
    return MPNetTokenizer(vocab=vocab, model_max_length=TEXT_LENGTH)


def roberta_tokenizer() -> PreTrainedTokenizerBase:
    vocab, merges = _byte_pairs([*_ROBERTA, "<mask>"])
    return RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def xlm_roberta_tokenizer() -> PreTrainedTokenizerBase:
    vocab = [*((token, 0.0) for token in _ROBERTA), *unigrams(_SIZE), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=TEXT_LENGTH)


def t5_tokenizer() -> PreTrainedTokenizerBase:
    """Ends every text with </s>."""
    vocab = [*((token, 0.0) for token in ("<pad>", "</s>", "<unk>")), *unigrams(_SIZE)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TEXT_LENGTH)


def modernbert_tokenizer() -> PreTrainedTokenizerBase:
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocab, merges = _byte_pairs(special)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TEXT_LENGTH, **names)


def qwen3_embedding_tokenizer() -> PreTrainedTokenizerBase:
    """Pads on the left and ends every text with <|endoftext|>, as Qwen3-Embedding's does."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab, merges = _byte_pairs(special)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>", padding_side="left")
    end = (special[0], vocab[special[0]])
    template = processors.TemplateProcessing(single=f"$A {special[0]}", special_tokens=[end])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def gemma_tokenizer() -> PreTrainedTokenizerBase:
    """Puts <bos> before and <eos> after every text, as EmbeddingGemma's does."""
    vocab, merges = _pieces(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, add_eos_token=True)
    ends = [(token, vocab[token]) for token in ("<bos>", "<eos>")]
    template = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def llama_tokenizer() -> PreTrainedTokenizerBase:
    """Has no padding token, as Llama's and Mistral's have none."""
    vocab, merges = _pieces(["<unk>", "<s>", "</s>"])
    return LlamaTokenizer(vocab=vocab, merges=merges)


def _byte_pairs(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over bytes, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    return _trained(tokenizer, trainer)


def _pieces(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over characters, with a token per byte for those that are unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=_SIZE + 256, special_tokens=special + bytes_, show_progress=False)
    return _trained(tokenizer, trainer)


def _trained(tokenizer: Tokenizer, trainer: trainers.BpeTrainer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
