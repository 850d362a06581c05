"""The processor of ColBERT-like text models: markers before texts, and queries filled up with mask tokens."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tokenizers import AddedToken
from torch import Tensor

from vembed.errors import ModelError
from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.token_rows import encode_texts, fill_token, side_flags, skipped_ids
from vembed.model.processors.auto import load_tokenizer
from vembed.model.processors.base import ItemProcessor
from vembed.model.processors.texts import forget_last_call, let_pad, lower_case, refuse_long_prompt
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, Inputs, Ragged, Side

_SIDES: tuple[Side, ...] = ("query", "document")


class LateTextProcessor(ItemProcessor):
    """Items to `input_ids`, `attention_mask` and `scored` (which tokens become vectors), each per row."""

    token_masks = ("attention_mask", "scored")

    def __init__(self, spec: ModelSpec, tokenizer: Any) -> None:  # Any: transformers is untyped here
        super().__init__(spec)
        self._tokenizer = tokenizer
        self._skipped = skipped_ids(tokenizer, spec.late.skipped_words if spec.late else ())
        for side in _SIDES:
            refuse_long_prompt(tokenizer, side, spec.prompt(side), self._limit(side))
        self._fill = fill_token(tokenizer, spec) if spec.num_query_tokens else 0

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "LateTextProcessor":
        """The tokenizer of the folder. Raises ModelError when its files are missing."""
        assert folders.text is not None
        tokenizer = load_tokenizer(folders.text, settings)
        tokenizer.padding_side = spec.padding_side
        let_pad(tokenizer)
        if spec.lower_case:
            lower_case(tokenizer)
        _keep_markers_whole(tokenizer, (spec.query_prompt, spec.document_prompt))
        return cls(spec, tokenizer)

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """Never called: the spec says that the model reads texts only."""
        raise ModelError("a text model reads no images")

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows: prompts put before texts, padded to the longest; queries filled up."""
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
            scored &= ~torch.isin(ids, self._skipped)
        if side == "query" and self.spec.num_query_tokens:
            ids, mask, scored = self._filled(ids, mask, scored)
        counts = torch.ones(len(texts), dtype=torch.int64)
        tensors = {
            "input_ids": Ragged(ids, counts),
            "attention_mask": Ragged(mask, counts),
            "scored": Ragged(scored, counts),
            "is_document": side_flags(len(texts), side),
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
        """The tokens that a text of that side is cut to."""
        late = self.spec.late
        limits = [self.spec.max_length, late.query_limit if late is not None and side == "query" else None]
        return min((length for length in limits if length), default=None)

    def _filled(self, ids: Tensor, mask: Tensor, scored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [rows, tokens] with mask tokens in the place of padding up to num_query_tokens; those are scored."""
        length = self.spec.num_query_tokens or 0
        missing = (0, max(0, length - ids.shape[1]))
        ids, mask, scored = (torch.nn.functional.pad(tensor, missing) for tensor in (ids, mask, scored))
        fill = (mask == 0) & (torch.arange(ids.shape[1]) < length)
        assert self.spec.late is not None
        seen = mask.masked_fill(fill, 1) if self.spec.late.attends_to_fill else mask
        return ids.masked_fill(fill, self._fill), seen, scored | fill


def _keep_markers_whole(tokenizer: Any, prompts: Sequence[str]) -> None:  # Any: transformers is untyped here
    """Let markers such as [unused0] or [Q] that the vocabulary holds be one token, as the model was trained."""
    markers = [AddedToken(marker, normalized=False, special=True) for marker in _cut_markers(tokenizer, prompts)]
    if markers:
        tokenizer.add_special_tokens({"additional_special_tokens": markers}, replace_extra_special_tokens=False)


def _cut_markers(tokenizer: Any, prompts: Sequence[str]) -> Iterator[str]:
    vocabulary = tokenizer.get_vocab()
    for prompt in prompts:
        words = [prompt, *prompt.split(maxsplit=1)[:1]]
        known = next((word for word in words if word.startswith("[") and word in vocabulary), None)
        if known is not None and tokenizer.tokenize(known) != [known]:
            yield known
