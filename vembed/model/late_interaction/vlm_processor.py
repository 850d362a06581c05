"""The processor of vision-language models with a vector per token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vembed.model.backbones.vlm_generic import IMAGE_TOKENS
from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.token_rows import fill_token, side_flags
from vembed.model.processors.vlm import VlmProcessor, VlmRow
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, Inputs, LoadedItem, Side

_SCORED = "scored"


class LateVlmProcessor(VlmProcessor):
    """As for every vision-language model, with `scored`, which tokens become vectors, and `is_document` per row.

    Where prompts are masked, a row is scored by the tokens of its images and of its text: neither the chat template nor
    the instruction in it says anything of the row.
    """

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> VlmProcessor:
        """The processor that the folder holds. Raises ModelError when its files, or a token to fill up, are missing."""
        processor = super().from_folders(spec, folders, settings)
        if spec.num_query_tokens:
            fill_token(processor.tokenizer, spec)
        return processor

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows."""
        inputs = super().prepare(items, side)
        return replace(inputs, tensors={**inputs.tensors, "is_document": side_flags(inputs.num_rows, side)})

    def mark_tokens(self, tokens: Mapping[str, Tensor], item: LoadedItem) -> Mapping[str, Tensor]:
        """The tokens, and which of them become vectors."""
        ids = tokens["input_ids"]
        if not self.spec.mask_prompts:
            return {**tokens, _SCORED: torch.ones_like(ids).bool()}
        place, stop = torch.arange(len(ids)), len(ids) - len(self._ending)
        first = stop - len(self._encode_plain(item.text or ""))
        return {**tokens, _SCORED: tokens[IMAGE_TOKENS] | ((place >= first) & (place < stop))}

    def _rows(self, loaded: Sequence[LoadedItem], side: Side) -> list[VlmRow]:
        rows = super()._rows(loaded, side)
        return [self._filled(row) for row in rows] if side == "query" and self.spec.num_query_tokens else rows

    def _filled(self, row: VlmRow) -> VlmRow:
        """A query with so many tokens at its end that num_query_tokens of all are scored."""
        missing = max(0, (self.spec.num_query_tokens or 0) - int(row.tokens[_SCORED].sum()))
        filling = {"input_ids": fill_token(self.tokenizer, self.spec), _SCORED: 1}
        tokens = {
            name: torch.cat([value, torch.full((missing,), filling.get(name, 0)).to(value)])
            for name, value in row.tokens.items()
        }
        return replace(row, tokens=tokens)

    def _padded_names(self) -> list[str]:
        return [*super()._padded_names(), _SCORED]
