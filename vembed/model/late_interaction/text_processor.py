"""The processor of ColBERT-like text models: marker tokens before texts, and query expansion with mask tokens."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tokenizers import AddedToken
from torch import Tensor

from vembed.errors import ModelError
from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.tokenization import document_flags, encode_texts, fill_token_id, skiplist_ids
from vembed.model.processors.auto import load_tokenizer
from vembed.model.processors.base import ItemProcessor
from vembed.model.processors.texts import ensure_pad_token, forget_last_call, lower_case, refuse_long_prompt
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, Inputs, Ragged, Side

_SIDES: tuple[Side, ...] = ("query", "document")


class LateTextProcessor(ItemProcessor):
    """Items to `input_ids`, `attention_mask` and `scored` (True: the token's vector is kept), [rows, tokens] each."""

    token_masks = ("attention_mask", "scored")

    def __init__(self, spec: ModelSpec, tokenizer: Any) -> None:  # Any: transformers is untyped here
        super().__init__(spec)
        self._tokenizer = tokenizer
        self._skiplist = skiplist_ids(tokenizer, spec.late.skipped_words if spec.late else ())
        for side in _SIDES:
            refuse_long_prompt(tokenizer, side, spec.prompt(side), self._limit(side))
        self._fill_id = fill_token_id(tokenizer, spec) if spec.num_query_tokens else 0

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "LateTextProcessor":
        """The tokenizer of the folder. Raises ModelError when its files are missing."""
        assert folders.text is not None
        tokenizer = load_tokenizer(folders.text, settings)
        tokenizer.padding_side = spec.padding_side
        ensure_pad_token(tokenizer)
        if spec.lower_case:
            lower_case(tokenizer)
        _add_marker_tokens(tokenizer, (spec.query_prompt, spec.document_prompt))
        return cls(spec, tokenizer)

    @property
    def tokenizer(self) -> Any:  # Any: transformers is untyped here
        """The tokenizer."""
        return self._tokenizer

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """Raises ModelError; not called, since the spec has a text tower only."""
        raise ModelError("a text model reads no images")

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows: texts with prompts, padded to the longest; queries expanded with mask tokens."""
        if not items:
            return Inputs(0, {})
        texts = [item.text or "" for item in self.load_all(items)]
        prompt = self.spec.prompt(side)
        encoded = encode_texts(self._tokenizer, [prompt + text for text in texts], self._limit(side))
        ids, mask = encoded.input_ids, encoded.attention_mask
        scored = mask.bool()
        if self.spec.mask_prompts:
            scored &= encoded.starts >= len(prompt)
        if side == "document":
            scored &= ~torch.isin(ids, self._skiplist)
        if side == "query" and self.spec.num_query_tokens:
            ids, mask, scored = self._expanded(ids, mask, scored)
        counts = torch.ones(len(texts), dtype=torch.int64)
        tensors = {
            "input_ids": Ragged(ids, counts),
            "attention_mask": Ragged(mask, counts),
            "scored": Ragged(scored, counts),
            "is_document": document_flags(len(texts), side),
        }
        return Inputs(len(texts), tensors, encoded.num_truncated)

    def finish(self, inputs: Inputs) -> Inputs:
        """The same inputs: there are no pictures."""
        return inputs

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the tokenizer's files."""
        forget_last_call(self._tokenizer)
        self._tokenizer.save_pretrained(text_folder)

    def _limit(self, side: Side) -> int | None:
        """The most tokens of a text of that side, None for no limit."""
        late = self.spec.late
        limits = [self.spec.max_length, late.query_limit if late is not None and side == "query" else None]
        return min((length for length in limits if length), default=None)

    def _expanded(self, ids: Tensor, mask: Tensor, scored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query expansion: ids, mask, scored [rows, tokens] with mask tokens for padding up to num_query_tokens."""
        length = self.spec.num_query_tokens or 0
        missing = (0, max(0, length - ids.shape[1]))
        ids, mask, scored = (torch.nn.functional.pad(tensor, missing) for tensor in (ids, mask, scored))
        fill = (mask == 0) & (torch.arange(ids.shape[1]) < length)
        assert self.spec.late is not None
        seen = mask.masked_fill(fill, 1) if self.spec.late.attends_to_fill else mask
        return ids.masked_fill(fill, self._fill_id), seen, scored | fill


def _add_marker_tokens(tokenizer: Any, prompts: Sequence[str]) -> None:  # Any: transformers is untyped here
    """Make markers such as [unused0] or [Q] special tokens, if the vocabulary has them, so that they are not split."""
    markers = [AddedToken(marker, normalized=False, special=True) for marker in _split_markers(tokenizer, prompts)]
    if markers:
        tokenizer.add_special_tokens({"additional_special_tokens": markers}, replace_extra_special_tokens=False)


def _split_markers(tokenizer: Any, prompts: Sequence[str]) -> Iterator[str]:
    vocabulary = tokenizer.get_vocab()
    for prompt in prompts:
        words = [prompt, *prompt.split(maxsplit=1)[:1]]
        known = next((word for word in words if word.startswith("[") and word in vocabulary), None)
        if known is not None and tokenizer.tokenize(known) != [known]:
            yield known
