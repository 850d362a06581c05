"""Late interaction: a unit vector for each token of a row, compared by MaxSim.

encode                    -> unit vectors [sequences, tokens, dim]     a family's own part
tokens that are scored    -> one list of vectors per row               padding and masked prompts are left out
documents: prune and pool -> fewer vectors                             vembed.model.late_interaction.token_pooling
pad again                 -> Embeddings [rows, tokens, dim] with mask
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vembed.model.base import BaseEmbeddingModel
from vembed.model.late_interaction.token_pooling import Reduction
from vembed.model.spec import ModelSpec
from vembed.model.vectors.rows import sums_by_row, widened
from vembed.types import Embeddings, Inputs

START_TEMPERATURE = 1.0  # scores are sums over a query's tokens, as ColBERT was trained with


@dataclass(frozen=True)
class TokenVectors:
    """Unit vectors [sequences, tokens, dim], and the attention mask, bool [sequences, tokens]."""

    vectors: Tensor
    mask: Tensor


class TokenRows:
    """Makes rows of the vectors of their tokens, as a spec says."""

    def __init__(self, spec: ModelSpec) -> None:
        self._reduction = Reduction.of(spec) if spec.reduces_documents else None
        self._last = spec.pooling["text"] == "last"

    def __call__(self, inputs: Inputs, tokens: TokenVectors) -> Embeddings:
        """The vectors of each row's tokens that are scored, those of documents reduced."""
        scored = inputs.tensors["scored"]
        vectors = widened(tokens.vectors)[scored.values]  # [all tokens, dim]
        lengths = sums_by_row(scored.values.sum(dim=1), scored.counts)  # [rows]
        if self._reduction is None:
            return _padded(vectors, lengths)
        documents = inputs.tensors["is_document"].values.tolist()
        similarity = self._similarity(tokens)[scored.values]
        parts = [torch.split(values, lengths.tolist()) for values in (vectors, similarity)]
        rows = [
            self._reduction(row, alike) if document else row
            for row, alike, document in zip(*parts, documents, strict=True)
        ]
        return _padded(torch.cat(rows), torch.tensor([len(row) for row in rows], device=vectors.device))

    def _similarity(self, tokens: TokenVectors) -> Tensor:
        """Cosine of each token with the one that stands for its sequence, [sequences, tokens]."""
        vectors, mask = tokens.vectors.detach().float(), tokens.mask.int()
        place = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1) if self._last else mask.argmax(dim=1)
        summary = vectors[torch.arange(len(vectors), device=vectors.device), place]  # [sequences, dim]
        return torch.einsum("std,sd->st", vectors, summary)


class TokenVectorModel(BaseEmbeddingModel):
    """A model with a vector per token. A kind overrides `encode_tokens`, and what BaseEmbeddingModel asks for."""

    start_temperature: ClassVar[float] = START_TEMPERATURE

    def __init__(self, spec: ModelSpec, *, has_new_heads: bool = False) -> None:
        super().__init__(spec, has_new_heads=has_new_heads)
        self.rows_of = TokenRows(spec)

    @abstractmethod
    def encode_tokens(self, inputs: Inputs) -> TokenVectors:
        """The vectors of every token of every sequence, padding included."""

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, tokens, dim] of finished inputs: the vectors of a row's text, then of its images."""
        if inputs.num_rows == 0:
            return Embeddings(self.logit_scale.new_zeros(0, 0, self.dim), self.logit_scale.new_zeros(0, 0).bool())
        return self.rows_of(inputs, self.encode_tokens(inputs))


def _padded(vectors: Tensor, lengths: Tensor) -> Embeddings:
    """The vectors [all tokens, dim] of rows of these lengths, int64 [rows], one row each and padded at the end."""
    most = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(most, device=lengths.device) < lengths[:, None]  # [rows, tokens]
    rows = vectors.new_zeros(*mask.shape, vectors.shape[1])
    return Embeddings(rows.masked_scatter(mask[:, :, None], vectors), mask)
