"""Real tokenizers with small vocabularies, trained on a few sentences."""

import json
from collections.abc import Mapping
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


def bert_tokenizer(vocab_size: int) -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=BERT_LENGTH)


def clip_tokenizer() -> CLIPTokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    letters = sorted(alphabet)
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [token for token in model["vocab"] if token not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=DUAL_LENGTH)


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
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocab = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=model_max_length)


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
