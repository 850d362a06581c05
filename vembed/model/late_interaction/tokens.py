"""Late interaction: a unit vector for each token of a row, compared by MaxSim.

encode_tokens             -> unit vectors [sequences, tokens, dim]     of each kind of model
select `scored` tokens    -> one list of vectors per row               without padding and masked prompts
documents: prune and pool -> fewer vectors                             vembed.model.late_interaction.token_pooling
pad                       -> Embeddings [rows, tokens, dim] with mask
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

START_TEMPERATURE = 1.0  # as ColBERT was trained: MaxSim scores are sums over a query's tokens


@dataclass(frozen=True)
class TokenVectors:
    """Unit vectors [sequences, tokens, dim], and the attention mask, bool [sequences, tokens]."""

    vectors: Tensor
    mask: Tensor


class TokenRows:
    """Selects the token vectors of each row and pads them; reduces documents, if the spec says so."""

    def __init__(self, spec: ModelSpec) -> None:
        self._reduction = Reduction.of(spec) if spec.reduces_documents else None
        self._last = spec.pooling["text"] == "last"

    def __call__(self, inputs: Inputs, tokens: TokenVectors) -> Embeddings:
        """Token vectors of sequences -> Embeddings [rows, tokens, dim] of scored tokens, padded at the end."""
        scored = inputs.tensors["scored"]
        vectors = widened(tokens.vectors)[scored.values]  # [all tokens, dim]
        lengths = sums_by_row(scored.values.sum(dim=1), scored.counts)  # [rows]
        if self._reduction is None:
            return _padded(vectors, lengths)
        documents = inputs.tensors["is_document"].values.tolist()
        similarity = self._similarity(tokens)[scored.values]
        parts = [torch.split(values, lengths.tolist()) for values in (vectors, similarity)]
        rows = [
            self._reduction(row, similarities) if document else row
            for row, similarities, document in zip(*parts, documents, strict=True)
        ]
        return _padded(torch.cat(rows), torch.tensor([len(row) for row in rows], device=vectors.device))

    def _similarity(self, tokens: TokenVectors) -> Tensor:
        """Cosine of each token with the summary token of its sequence (first or last), [sequences, tokens]."""
        vectors, mask = tokens.vectors.detach().float(), tokens.mask.int()
        place = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1) if self._last else mask.argmax(dim=1)
        summary = vectors[torch.arange(len(vectors), device=vectors.device), place]  # [sequences, dim]
        return torch.einsum("std,sd->st", vectors, summary)


class TokenVectorModel(BaseEmbeddingModel):
    """A model with a vector per token. Subclasses override `encode_tokens`, and BaseEmbeddingModel's methods."""

    start_temperature: ClassVar[float] = START_TEMPERATURE

    def __init__(self, spec: ModelSpec, *, has_new_heads: bool = False) -> None:
        super().__init__(spec, has_new_heads=has_new_heads)
        self.rows_of = TokenRows(spec)

    @abstractmethod
    def encode_tokens(self, inputs: Inputs) -> TokenVectors:
        """The vectors [sequences, tokens, dim] of every token, padding included."""

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, tokens, dim] of finished inputs: the vectors of a row's text, then of its images."""
        if inputs.num_rows == 0:
            return Embeddings(self.logit_scale.new_zeros(0, 0, self.dim), self.logit_scale.new_zeros(0, 0).bool())
        return self.rows_of(inputs, self.encode_tokens(inputs))


def _padded(vectors: Tensor, lengths: Tensor) -> Embeddings:
    """Vectors [all tokens, dim] of rows with these lengths, int64 [rows] -> [rows, tokens, dim], padded at the end."""
    most = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(most, device=lengths.device) < lengths[:, None]  # [rows, tokens]
    rows = vectors.new_zeros(*mask.shape, vectors.shape[1])
    return Embeddings(rows.masked_scatter(mask[:, :, None], vectors), mask)
