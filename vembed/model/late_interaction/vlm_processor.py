"""The processor of vision-language models with a vector per token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vembed.model.backbones.vlm_generic import IMAGE_TOKENS
from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.tokenization import document_flags, fill_token_id
from vembed.model.processors.vlm import VlmProcessor, VlmRow
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, Inputs, LoadedItem, Side

_SCORED = "scored"


class LateVlmProcessor(VlmProcessor):
    """As for every vision-language model, with `scored`, bool per token, and `is_document`, bool per row.

    With mask_prompts only the tokens of a row's images and text are scored: the chat template and the instruction are
    the same for all rows.
    """

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> VlmProcessor:
        """The folder's processor. Raises ModelError without its files, or without a token for query expansion."""
        processor = super().from_folders(spec, folders, settings)
        if spec.num_query_tokens:
            fill_token_id(processor.tokenizer, spec)
        return processor

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """As of any vision-language model, with `is_document` per row."""
        inputs = super().prepare(items, side)
        return replace(inputs, tensors={**inputs.tensors, "is_document": document_flags(inputs.num_rows, side)})

    def mark_tokens(self, tokens: Mapping[str, Tensor], item: LoadedItem) -> Mapping[str, Tensor]:
        """The tokens with `scored`: True for those whose vectors are kept."""
        ids = tokens["input_ids"]
        if not self.spec.mask_prompts:
            return {**tokens, _SCORED: torch.ones_like(ids).bool()}
        place, stop = torch.arange(len(ids)), len(ids) - len(self._ending)
        first = stop - len(self._encode_plain(item.text or ""))
        return {**tokens, _SCORED: tokens[IMAGE_TOKENS] | ((place >= first) & (place < stop))}

    def tokenize_rows(self, loaded: Sequence[LoadedItem], side: Side) -> list[VlmRow]:
        """As of any vision-language model, with query expansion."""
        rows = super().tokenize_rows(loaded, side)
        return [self._expanded(row) for row in rows] if side == "query" and self.spec.num_query_tokens else rows

    def _expanded(self, row: VlmRow) -> VlmRow:
        """Query expansion: the row with mask tokens at its end, so that num_query_tokens in all are scored."""
        missing = max(0, (self.spec.num_query_tokens or 0) - int(row.tokens[_SCORED].sum()))
        filling = {"input_ids": fill_token_id(self.tokenizer, self.spec), _SCORED: 1}
        tokens = {
            name: torch.cat([value, torch.full((missing,), filling.get(name, 0)).to(value)])
            for name, value in row.tokens.items()
        }
        return replace(row, tokens=tokens)

    def token_tensor_names(self) -> list[str]:
        """As of any vision-language model, with `scored`."""
        return [*super().token_tensor_names(), _SCORED]
