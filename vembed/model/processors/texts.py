"""Texts to padded token numbers, with the texts counted that were cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import normalizers
from torch import Tensor

from vembed.model.spec import ModelSpec


@dataclass(frozen=True)
class EncodedTexts:
    """input_ids and attention_mask, int64 [texts, tokens], and how many texts were longer than the limit."""

    input_ids: Tensor
    attention_mask: Tensor
    num_truncated: int


class TextReader:
    """A tokenizer with the length and padding that the model was trained with."""

    # Any: transformers is untyped here
    def __init__(self, tokenizer: Any, spec: ModelSpec) -> None:
        self.tokenizer = tokenizer
        self._max_length = spec.max_length
        self._pad_to = spec.pad_to
        tokenizer.padding_side = spec.padding_side
        if spec.lower_case:
            _lower_case(tokenizer)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokens padded to the longest of these texts, or to the model's fixed length.

        Models that were trained with padding in view (their tokenizer gives no mask) get a mask without gaps.
        """
        length: dict[str, Any] = {"padding": "longest", "truncation": False}
        if self._max_length is not None:
            length = {"padding": "longest", "truncation": True, "max_length": self._max_length}
        if self._pad_to is not None:
            length |= {"padding": "max_length", "max_length": self._pad_to}
        encoded = self.tokenizer(list(texts), return_tensors="pt", **length)
        ids: Tensor = encoded["input_ids"]
        mask: Tensor = encoded["attention_mask"] if "attention_mask" in encoded else torch.ones_like(ids)
        return EncodedTexts(ids, mask, self._num_truncated(encoded, texts))

    def _num_truncated(self, encoded: Any, texts: Sequence[str]) -> int:  # Any: transformers is untyped here
        if self._max_length is None:
            return 0
        if encoded.encodings is not None:
            return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        lengths = [len(ids) for ids in self.tokenizer(list(texts), truncation=False)["input_ids"]]
        return sum(length > self._max_length for length in lengths)


def _lower_case(tokenizer: Any) -> None:
    """Put lower-casing before the tokenizer's own normalisation, as sentence-transformers does."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a":
        return
    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer is not None else [])
    backend.normalizer = normalizers.Sequence(steps)
