"""Real tokenizers with small vocabularies, made of a few sentences, the same in every process.

Of the trainers of `tokenizers`, only that of byte pairs without a suffix gives the same vocabulary every time.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    SiglipTokenizer,
    XLMRobertaTokenizer,
)

CORPUS = [
    "a photo of a red circle",
    "two blue squares on a green field",
    "the small yellow triangle beside a large picture",
    "what colour is the shape in this image",
    "either/or and 1234567890 signs: !?.,;-_()",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ",
]
BERT_LENGTH = 32
DUAL_LENGTH = 16


def corpus_words() -> list[str]:
    """The words of the corpus in small letters, each once; a sign is a word."""
    return sorted({word for text in CORPUS for word in re.findall(r"\w+|[^\w\s]", text.lower())})


def word_pieces(special: Sequence[str]) -> dict[str, int]:
    """A WordPiece vocabulary: special tokens, every character at the start of a word and within one, words and their
    beginnings."""
    words = corpus_words()
    characters = sorted(set("".join(words)))
    beginnings = [word[:length] for word in words for length in range(2, len(word) + 1)]
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *beginnings]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def bert_tokenizer() -> BertTokenizer:
    vocab = word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return BertTokenizer(vocab=vocab, model_max_length=BERT_LENGTH)


def clip_tokenizer() -> CLIPTokenizer:
    """Every byte, and merges that make the words of the corpus from their beginnings."""
    merges: dict[tuple[str, str], None] = {}
    for word in corpus_words():
        *letters, last = word
        ends = [*letters, f"{last}</w>"]
        merges |= {("".join(ends[:length]), ends[length]): None for length in range(1, len(ends))}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=DUAL_LENGTH)


def siglip_tokenizer(folder: str | Path) -> SiglipTokenizer:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=120, hard_vocab_limit=False,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    return SiglipTokenizer(
        vocab_file=str(Path(folder) / "spiece.model"), model_max_length=DUAL_LENGTH, model_input_names=["input_ids"]
    )


def gemma_tokenizer(special: Mapping[str, str] | None = None) -> GemmaTokenizer:
    """Characters, a few merges, and bytes for everything else. `special`: names of tokens (PaliGemma's <image>)."""
    special = special or {"image_token": "<image>"}
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *special.values()]
    characters = sorted({character for text in CORPUS for character in text.replace(" ", "▁")} | {"\n"})
    merges = [("▁", "a"), ("e", "r"), ("i", "n"), ("o", "f"), ("t", "h"), ("th", "e")]
    tokens = first + [f"<0x{byte:02X}>" for byte in range(256)] + characters + ["".join(pair) for pair in merges]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, extra_special_tokens=dict(special))
    tokenizer.padding_side = "right"
    return tokenizer


def qwen2_tokenizer(names: Mapping[str, str] | None = None) -> Qwen2Tokenizer:
    """Every byte, a few merges, and the special tokens of Qwen2-VL. `names`: further tokens, by their names."""
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    merges = [("Ġ", "a"), ("e", "r"), ("i", "n"), ("o", "f"), ("t", "h"), ("th", "e")]
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=dict(names or {}))
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def modernvbert_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte, a few merges, [CLS] and [SEP] around a text, and the tokens that stand for tiles of a picture."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    merges = [("Ġ", "a"), ("e", "r"), ("i", "n"), ("o", "f"), ("t", "h"), ("th", "e")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    tiles = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    tokenizer.add_tokens(["<global-img>", *tiles, "<|begin_of_text|>"], special_tokens=True)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]}
    )
    return tokenizer


def siglip2_tokenizer(tokenizer_class: type = GemmaTokenizer, **options: object) -> PreTrainedTokenizerBase:
    """SigLIP 2's: byte-pair pieces with a fallback to bytes, an end token, padding on the right; cases kept."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return tokenizer_class(
        vocab=model["vocab"], merges=merges, add_bos_token=False, add_eos_token=True, padding_side="right", **options
    )


def xlm_roberta_tokenizer(model_max_length: int = DUAL_LENGTH) -> XLMRobertaTokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocab = [*((token, 0.0) for token in special), *unigrams(150)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=model_max_length)


def unigrams(size: int) -> list[tuple[str, float]]:
    """Pieces whose scores are their ranks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, -1.0 - rank / 100) for rank, piece in enumerate(pieces)]


def smolvlm_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte, a few merges, and the tokens that stand for tiles of a picture and for turns."""
    merges = [("Ġ", "a"), ("e", "r"), ("i", "n"), ("o", "f"), ("t", "h"), ("th", "e")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*first, *alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tiles = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    others = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*others, *tiles]})
    return tokenizer
