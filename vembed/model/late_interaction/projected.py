"""ColBERT and ColQwen: a text encoder or vision-language model whose token vectors are projected to a small width."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from vembed.model.adapters.base_model import plain_folder
from vembed.model.backbones.auto import encoder_loader
from vembed.model.backbones.layers import VectorLayers
from vembed.model.backbones.pretrained import Backbone, load_backbone
from vembed.model.backbones.vlm_generic import VlmModel
from vembed.model.base import disable_kv_cache
from vembed.model.folder.find import JsonFiles, ModelFolders
from vembed.model.folder.multi_vector import projection_files
from vembed.model.folder.sentence_layers import width_after
from vembed.model.late_interaction.projection import load_projection, project_tokens
from vembed.model.late_interaction.tokens import START_TEMPERATURE, TokenRows, TokenVectorModel, TokenVectors
from vembed.model.network.features import FEATURES
from vembed.model.network.parameters import Part
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec
from vembed.types import Embeddings, Inputs, Ragged


class LateTextModel(TokenVectorModel):
    """BERT, ModernBERT or another text encoder, with the projection of its checkpoint or a new one."""

    parts: ClassVar[Mapping[str, Part]] = {"backbone.": "text", "heads.": "heads"}
    keeps_states_of: ClassVar[Tower | None] = "text"

    def __init__(self, spec: ModelSpec, backbone: Backbone, heads: VectorLayers, *, has_new_heads: bool) -> None:
        super().__init__(spec, has_new_heads=has_new_heads)
        self.backbone = backbone
        self.heads = heads
        self._dim = width_after(int(backbone.config.hidden_size), heads.specs, Path())

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "LateTextModel":
        """The encoder in `folders.text`, with the layers of its spec; without any, with a new projection."""
        assert folders.text is not None
        loader = encoder_loader(plain_folder(folders.text, settings))
        backbone = load_backbone(folders.text, settings, loader=loader)
        disable_kv_cache(backbone)
        spec, heads, is_new = load_projection(spec, folders.text, int(backbone.config.hidden_size), settings, seed=seed)
        return cls(spec, backbone, heads, has_new_heads=is_new)

    @property
    def dim(self) -> int:
        """Width of a token's vector."""
        return self._dim

    def towers(self) -> dict[Tower, nn.Module]:
        """The text encoder, without the projection."""
        return {"text": self.backbone}

    def backbones(self) -> dict[str, Backbone]:
        """The text encoder, at the root of a checkpoint."""
        return {"": self.backbone}

    def encode_tokens(self, inputs: Inputs) -> TokenVectors:
        """The projected vector of every token, [texts, tokens, dim]."""
        return self._encode(inputs, self.heads)

    def with_fixed_states(self, inputs: Inputs) -> Inputs:
        """Finished inputs with the encoder's hidden states in the place of `input_ids`; without a graph."""
        with torch.no_grad():
            features = Ragged(self._hidden(inputs), inputs.tensors["attention_mask"].counts)
        masks = {name: ragged for name, ragged in inputs.tensors.items() if name != "input_ids"}
        return replace(inputs, tensors={**masks, FEATURES["text"]: features})

    def tower_features(self, inputs: Inputs) -> Embeddings:
        """As forward, but without a projection that is new."""
        if not self.has_new_heads:
            return self.forward(inputs)
        return self.rows_of(inputs, self._encode(inputs, nn.Identity()))

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The files of a MultiVectorEncoder."""
        return projection_files(self.spec)

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The weights of the projection, by its subfolder."""
        return self.heads.states()

    def _encode(self, inputs: Inputs, heads: nn.Module) -> TokenVectors:
        mask = inputs.tensors["attention_mask"].values.bool()
        return project_tokens(self._hidden(inputs), mask, heads, self.spec)

    def _hidden(self, inputs: Inputs) -> Tensor:
        """The encoder's last hidden states [texts, tokens, width], computed, or taken from the inputs."""
        if FEATURES["text"] in inputs.tensors:
            return inputs.tensors[FEATURES["text"]].values
        ids, mask = inputs.tensors["input_ids"].values, inputs.tensors["attention_mask"].values
        hidden: Tensor = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


class LateVlmModel(VlmModel):
    """A vision-language model by its chat template, with the projection of its checkpoint or a new one."""

    parts: ClassVar[Mapping[str, Part]] = {"heads.": "heads"}
    start_temperature: ClassVar[float] = START_TEMPERATURE
    head_tensors: ClassVar[tuple[str, ...]] = ("scored", "is_document")

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        language_head: Mapping[str, Tensor] | None = None,
        *,
        heads: VectorLayers,
        is_new: bool,
    ) -> None:
        super().__init__(spec, backbone, language_head)
        self.heads = heads
        self.has_new_heads = is_new
        self.rows_of = TokenRows(spec)

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "LateVlmModel":
        """The model in `folders.text`, with the layers of its spec; without any, with a new projection."""
        assert folders.text is not None
        plain = VlmModel.load(spec, folders, settings, seed)
        spec, heads, is_new = load_projection(spec, folders.text, plain.dim, settings, seed=seed)
        return cls(spec, plain.backbone, plain.language_head, heads=heads, is_new=is_new)

    @property
    def dim(self) -> int:
        """Width of a token's vector."""
        return width_after(super().dim, self.heads.specs, Path())

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, tokens, dim] of finished inputs."""
        return self._embed(inputs, self.heads)

    def tower_features(self, inputs: Inputs) -> Embeddings:
        """As forward, but without a projection that is new."""
        return self._embed(inputs, nn.Identity() if self.has_new_heads else self.heads)

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The weights of the projection, by its subfolder."""
        return self.heads.states()

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The files of a MultiVectorEncoder that renders the chat template."""
        return projection_files(self.spec, super().sentence_files(subfolder)["sentence_bert_config.json"])

    def _embed(self, inputs: Inputs, heads: nn.Module) -> Embeddings:
        if inputs.num_rows == 0:
            return Embeddings(self.logit_scale.new_zeros(0, 0, self.dim), self.logit_scale.new_zeros(0, 0).bool())
        states = self.token_states(inputs)
        return self.rows_of(inputs, project_tokens(states.hidden, states.mask, heads, self.spec))
