"""Real tokenizers with small vocabularies, trained on a few sentences."""

import json
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer, SiglipTokenizer

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
