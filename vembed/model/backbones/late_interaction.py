"""Late interaction: a unit vector for each token of a row, compared by MaxSim.

encode                    -> unit vectors [sequences, tokens, dim]     a family's own part
tokens that are scored    -> one list of vectors per row               padding and masked prompts are left out
documents: prune and pool -> fewer vectors                             vembed.model.token_pooling
pad again                 -> Embeddings [rows, tokens, dim] with mask
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.base import BaseEmbeddingModel, disable_kv_cache
from vembed.model.files import ModelFolders
from vembed.model.late_files import retrieval_files
from vembed.model.parameters import Part
from vembed.model.sentence_folder import JsonFiles
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import LateInteraction, ModelSpec
from vembed.model.token_pooling import Reduction
from vembed.types import Embeddings, Inputs, Ragged

START_TEMPERATURE = 1.0  # scores are sums over a query's tokens, as ColBERT was trained with


@dataclass(frozen=True)
class TokenVectors:
    """Unit vectors [sequences, tokens, dim], and the attention mask, bool [sequences, tokens]."""

    vectors: Tensor
    mask: Tensor


class LateInteractionModel(BaseEmbeddingModel):
    """A model with a vector per token. A family overrides `encode_tokens`, and what BaseEmbeddingModel asks for."""

    def __init__(self, spec: ModelSpec, *, has_new_heads: bool = False) -> None:
        super().__init__(spec, has_new_heads=has_new_heads)
        self.set_temperature(START_TEMPERATURE)
        self._reduction = Reduction.of(spec)

    @abstractmethod
    def encode_tokens(self, inputs: Inputs) -> TokenVectors:
        """The vectors of every token of every sequence, padding included."""

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, tokens, dim] of finished inputs: the vectors of a row's text, then of its images."""
        return self._rows(inputs, self.encode_tokens(inputs))

    def _rows(self, inputs: Inputs, tokens: TokenVectors) -> Embeddings:
        scored = inputs.tensors["scored"]
        vectors = _widened(tokens.vectors)[scored.values]  # [all tokens, dim]
        lengths = _sums(scored.values.sum(dim=1), scored.counts)  # [rows]
        if not self.spec.reduces_documents:
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
        last = self.spec.pooling["text"] == "last"
        place = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1) if last else mask.argmax(dim=1)
        summary = vectors[torch.arange(len(vectors), device=vectors.device), place]  # [sequences, dim]
        return torch.einsum("std,sd->st", vectors, summary)


class LateRetrievalModel(LateInteractionModel):
    """transformers' own ColPali, ColQwen2 and ColModernVBERT, which project and normalise by themselves."""

    parts: ClassVar[Mapping[str, Part]] = {
        "backbone.vlm.vis": "vision",
        "backbone.vlm.multi_modal_projector": "vision",
        "backbone.vlm.connector": "vision",
        "backbone.": "text",
    }

    def __init__(self, spec: ModelSpec, backbone: Backbone) -> None:
        super().__init__(spec)
        self.backbone = backbone

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "LateRetrievalModel":
        """The model in `folders.text`."""
        assert folders.text is not None
        loader = getattr(transformers, _CLASSES[_late(spec).architecture])
        backbone = load_backbone(folders.text, settings, loader=loader)
        disable_kv_cache(backbone)
        return cls(spec, backbone)

    @property
    def dim(self) -> int:
        """Width of a token's vector."""
        return int(self.backbone.config.embedding_dim)

    def towers(self) -> dict[Tower, nn.Module]:
        """The language model and the vision model, without projections."""
        parts = dict(self.backbone.vlm.named_children())
        text = next(parts[name] for name in ("language_model", "text_model") if name in parts)
        vision = next(parts[name] for name in ("vision_tower", "vision_model", "visual") if name in parts)
        return {"text": text, "vision": vision}

    def backbones(self) -> dict[str, Backbone]:
        """The whole model, at the root of a checkpoint."""
        return {"": self.backbone}

    def encode_tokens(self, inputs: Inputs) -> TokenVectors:
        """Text and image sequences of all rows in one pass."""
        ids, mask = inputs.tensors["input_ids"].values, inputs.tensors["attention_mask"].values
        images = _IMAGE_INPUTS[_late(self.spec).architecture](inputs.tensors, ids)
        output = self.backbone(input_ids=ids, attention_mask=mask, **images)
        return TokenVectors(output.embeddings, mask.bool())

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The files of a MultiVectorEncoder."""
        config = self.backbone.config.vlm_config
        in_text = _late(self.spec).architecture == "colpali"  # its processor makes room for a picture in every text
        return retrieval_files(self.spec, int(config.text_config.num_image_tokens) if in_text else 0)


def _colpali_inputs(tensors: Mapping[str, Ragged], input_ids: Tensor) -> dict[str, Tensor]:
    """token_type_ids of zeros: every token sees every other, as in training."""
    inputs = {"token_type_ids": torch.zeros_like(input_ids)}
    if "pixel_values" in tensors and len(tensors["pixel_values"].values):
        inputs["pixel_values"] = tensors["pixel_values"].values
    return inputs


def _colqwen2_inputs(tensors: Mapping[str, Ragged], input_ids: Tensor) -> dict[str, Tensor]:
    """The patches of each image padded to the most, [images, patches, numbers], which the model cuts again."""
    if "pixel_values" not in tensors or not len(tensors["pixel_values"].values):
        return {}
    grids = tensors["image_grid_thw"].values
    patches = torch.split(tensors["pixel_values"].values, grids.prod(dim=1).tolist())
    return {"pixel_values": nn.utils.rnn.pad_sequence(list(patches), batch_first=True), "image_grid_thw": grids}


def _colmodernvbert_inputs(tensors: Mapping[str, Ragged], input_ids: Tensor) -> dict[str, Tensor]:
    """All tiles as if they were of one row: the model takes them in order."""
    if "pixel_values" not in tensors or not len(tensors["pixel_values"].values):
        return {}
    return {name: tensors[name].values[None] for name in ("pixel_values", "pixel_attention_mask")}


_CLASSES = {
    "colpali": "ColPaliForRetrieval",
    "colqwen2": "ColQwen2ForRetrieval",
    "colmodernvbert": "ColModernVBertForRetrieval",
}
_IMAGE_INPUTS: Mapping[str, Any] = {  # Any: all three have the same signature
    "colpali": _colpali_inputs,
    "colqwen2": _colqwen2_inputs,
    "colmodernvbert": _colmodernvbert_inputs,
}


def _late(spec: ModelSpec) -> LateInteraction:
    assert spec.late is not None
    return spec.late


def _padded(vectors: Tensor, lengths: Tensor) -> Embeddings:
    """The vectors [all tokens, dim] of rows of these lengths, int64 [rows], one row each and padded at the end."""
    most = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(most, device=lengths.device) < lengths[:, None]  # [rows, tokens]
    rows = vectors.new_zeros(*mask.shape, vectors.shape[1])
    return Embeddings(rows.masked_scatter(mask[:, :, None], vectors), mask)


def _sums(lengths: Tensor, counts: Tensor) -> Tensor:
    """The sum of the lengths, int64 [sequences], of each row's sequences, int64 [rows]."""
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return lengths.new_zeros(len(counts)).index_add(0, rows, lengths)


def _widened(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors
