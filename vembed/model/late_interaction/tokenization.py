"""Tokenisation for late interaction: padded tokens with their character offsets, skiplists, expansion tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vembed.errors import ModelError
from vembed.model.spec import ModelSpec
from vembed.types import Ragged, Side


@dataclass(frozen=True)
class EncodedTokens:
    """Tokens of texts, int64 [texts, tokens] each. num_truncated: texts longer than the limit.

    starts: the index of the character at which a token begins; the longest text's length for special tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    starts: Tensor
    num_truncated: int


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> EncodedTokens:
    """Tokens of these texts, truncated to max_length and padded to the longest. Any: transformers is untyped here."""
    truncation: dict[str, Any] = (
        {"truncation": False} if max_length is None else {"truncation": True, "max_length": max_length}
    )
    encoded = tokenizer(list(texts), padding="longest", return_offsets_mapping=True, return_tensors="pt", **truncation)
    num_truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings) if max_length else 0
    starts, ends = encoded["offset_mapping"].unbind(dim=2)
    starts = starts.masked_fill(starts == ends, max(map(len, texts), default=0))
    return EncodedTokens(encoded["input_ids"], encoded["attention_mask"], starts, num_truncated)


def document_flags(num_rows: int, side: Side) -> Ragged:
    """Bool [rows]: True if the rows are documents."""
    return Ragged(torch.full((num_rows,), side == "document"), torch.ones(num_rows, dtype=torch.int64))


def skiplist_ids(tokenizer: Any, words: Sequence[str]) -> Tensor:
    """Token ids of a skiplist's words, without unknown ones, int64 [ids]. Any: transformers is untyped here."""
    numbers = [tokenizer.convert_tokens_to_ids(word) for word in words]
    return torch.tensor([number for number in numbers if number not in (None, tokenizer.unk_token_id)]).long()


def fill_token_id(tokenizer: Any, spec: ModelSpec) -> int:  # Any: transformers is untyped here
    """The id of the token of query expansion. Raises ModelError if the tokenizer has none."""
    assert spec.late is not None
    if spec.late.fill_token is not None:
        number = tokenizer.convert_tokens_to_ids(spec.late.fill_token)
        if number in (None, tokenizer.unk_token_id):
            raise ModelError(f"num_query_tokens: the tokenizer does not know the token {spec.late.fill_token!r}")
        return int(number)
    for number in (tokenizer.mask_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    raise ModelError(
        "num_query_tokens: the tokenizer has neither a mask token nor an end-of-text token to fill up with"
    )
