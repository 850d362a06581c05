"""Texts to padded token ids, with a count of truncated texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import normalizers
from torch import Tensor

from vembed.errors import ModelError
from vembed.model.spec import ModelSpec
from vembed.types import Side


@dataclass(frozen=True)
class EncodedTexts:
    """input_ids and attention_mask, int64 [texts, tokens]. num_truncated: texts longer than the limit.

    pooled_tokens: bool [texts, tokens], the real tokens without the prompt's; None if all real tokens are pooled.
    """

    input_ids: Tensor
    attention_mask: Tensor
    num_truncated: int
    pooled_tokens: Tensor | None = None


class TextReader:
    """A tokenizer with the length and padding that the model was trained with."""

    # Any: transformers is untyped here
    def __init__(self, tokenizer: Any, spec: ModelSpec) -> None:
        self.tokenizer = tokenizer
        self._max_length = spec.max_length
        self._pad_to = spec.pad_to
        self._pools_prompt = spec.pool_prompt
        tokenizer.padding_side = spec.padding_side
        ensure_pad_token(tokenizer)
        if spec.lower_case:
            lower_case(tokenizer)
        refuse_long_prompt(tokenizer, "query", spec.query_prompt, spec.max_length)
        refuse_long_prompt(tokenizer, "document", spec.document_prompt, spec.max_length)

    def encode(self, texts: Sequence[str], prompt: str = "") -> EncodedTexts:
        """Tokens of prompt + text, padded to the longest of these texts, or to the model's fixed length.

        A tokenizer without masks (SigLIP's: it was trained to attend to padding) gets a mask of ones.
        """
        texts = [prompt + text for text in texts]
        encoded = self._tokenize(texts)
        ids: Tensor = encoded["input_ids"]
        mask: Tensor = encoded["attention_mask"] if "attention_mask" in encoded else torch.ones_like(ids)
        ids, mask = self._fill_empty_texts(ids.long(), mask.long())
        return EncodedTexts(ids, mask, self._num_truncated(encoded, texts), self._pooled_tokens(mask, prompt))

    def _fill_empty_texts(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids and mask with an EOS token for each text without any token: an empty one, of a tokenizer like Llama's."""
        empty = ~mask.bool().any(dim=1)
        if not empty.any():
            return ids, mask
        own = self.tokenizer
        end = own.eos_token_id if own.eos_token_id is not None else own.pad_token_id
        if ids.shape[1] == 0:
            ids, mask = ids.new_full((len(ids), 1), end), mask.new_zeros(len(ids), 1)
        column = -1 if own.padding_side == "left" else 0
        ids[empty, column], mask[empty, column] = end, 1
        return ids, mask

    def _tokenize(self, texts: list[str]) -> Any:  # Any: transformers is untyped here
        length: dict[str, Any] = {"padding": "longest", "truncation": False}
        if self._max_length is not None:
            length = {"padding": "longest", "truncation": True, "max_length": self._max_length}
        if self._pad_to is not None:
            length |= {"padding": "max_length", "max_length": self._pad_to}
        return self.tokenizer(texts, return_tensors="pt", **length)

    def _pooled_tokens(self, mask: Tensor, prompt: str) -> Tensor | None:
        """Bool [texts, tokens], or None for all: without as many tokens as the prompt has by itself, EOS aside.

        So does sentence-transformers. Of an empty text the prompt is pooled.
        """
        if self._pools_prompt or not prompt:
            return None
        ids: list[int] = self._tokenize([prompt])["input_ids"][0].tolist()
        num_prompt_tokens = len(ids) - int(ids[-1] in self.tokenizer.all_special_ids)
        real = mask.bool()
        pooled = real & (mask.cumsum(dim=1) > num_prompt_tokens)
        return torch.where(pooled.any(dim=1, keepdim=True), pooled, real)

    def _num_truncated(self, encoded: Any, texts: list[str]) -> int:  # Any: transformers is untyped here
        if self._max_length is None:
            return 0
        if encoded.encodings is not None:
            return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        lengths = [len(ids) for ids in self.tokenizer(texts, truncation=False)["input_ids"]]
        return sum(length > self._max_length for length in lengths)


def lower_case(tokenizer: Any) -> None:
    """Add lower-casing before the tokenizer's normaliser, as sentence-transformers does."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a":
        return
    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer is not None else [])
    backend.normalizer = normalizers.Sequence(steps)


def forget_last_call(tokenizer: Any) -> None:
    """Reset truncation and padding, which a fast tokenizer keeps from its last call and would save."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def ensure_pad_token(tokenizer: Any) -> None:
    """Set a padding token for a tokenizer without one (Llama's); padding is masked, so any token will do."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token


def refuse_long_prompt(tokenizer: Any, side: Side, prompt: str, limit: int | None) -> None:
    """Raise ModelError if the prompt leaves no tokens for a text within the limit."""
    num_tokens = len(tokenizer(prompt)["input_ids"]) if prompt else 0
    if limit is not None and num_tokens >= limit:
        raise ModelError(
            f"max_length {limit}: the {side} prompt alone takes {num_tokens} tokens, which leaves none for a text;"
            f" raise max_length, or set a shorter {side}_prompt"
        )
