"""Composed models: any text tower and any vision tower, each with a projection head into one space."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vembed.model.backbones.auto import load_text_tower
from vembed.model.backbones.pretrained import Backbone
from vembed.model.backbones.towers import TextTower
from vembed.model.backbones.vision import (
    EXPONENT_NAME,
    IMAGE_TENSORS,
    VisionTower,
    load_vision_tower,
    vision_sentence_files,
)
from vembed.model.base import BaseEmbeddingModel
from vembed.model.folder.find import JsonFiles, ModelFolders
from vembed.model.folder.sentence_transformers import tower_spec
from vembed.model.network.parameters import Part
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec


class ProjectionHead(nn.Module):
    """Linear layer that starts as the identity, or orthogonal where widths differ; `mlp` adds a zero-init branch.

    So a new head keeps the distances between the pretrained tower's features, exactly or as a random projection does.
    """

    def __init__(self, width: int, dim: int, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim, bias=False)
        self.branch = _Branch(width, dim) if kind == "mlp" else None

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the starting weights from `generator`."""
        if self.linear.in_features == self.linear.out_features:
            nn.init.eye_(self.linear.weight)
        else:
            nn.init.orthogonal_(self.linear.weight, generator=generator)
        if self.branch is not None:
            nn.init.xavier_uniform_(self.branch.up.weight, generator=generator)
            for zero in (self.branch.up.bias, self.branch.down.weight, self.branch.down.bias):
                nn.init.zeros_(zero)

    def forward(self, features: Tensor) -> Tensor:
        """[items, width] -> [items, dim]."""
        projected: Tensor = self.linear(features)
        return projected if self.branch is None else projected + self.branch(features)


class _Branch(nn.Module):
    """norm -> linear -> GELU -> linear, [items, width] -> [items, dim]."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, dim)
        self.down = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.down(functional.gelu(self.up(self.norm(features))))
        return output


class ComposedModel(BaseEmbeddingModel):
    """A text tower and a vision tower that were trained apart, joined by new projection heads."""

    parts: ClassVar[Mapping[str, Part]] = {
        "text_tower.": "text",
        EXPONENT_NAME: "heads",
        "vision_tower.": "vision",
        "heads.": "heads",
    }
    image_tensors: ClassVar[tuple[str, ...]] = IMAGE_TENSORS

    def __init__(self, spec: ModelSpec, text_tower: TextTower, vision_tower: VisionTower, *, seed: int) -> None:
        dim = spec.projection_dim or text_tower.width
        kind = spec.projection_head or "linear"
        super().__init__(spec.model_copy(update={"projection_dim": dim, "projection_head": kind}), has_new_heads=True)
        self.text_tower = text_tower
        self.vision_tower = vision_tower
        with torch.random.fork_rng(devices=[]):
            self.heads = nn.ModuleDict(
                {
                    "text": ProjectionHead(text_tower.width, dim, kind),
                    "vision": ProjectionHead(vision_tower.width, dim, kind),
                }
            )
        generator = torch.Generator().manual_seed(seed)
        for head in self.heads.values():
            assert isinstance(head, ProjectionHead)
            head.initialize(generator)
        self._dim = dim

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "ComposedModel":
        """The towers in `folders`, with new heads."""
        assert folders.text is not None
        assert folders.image is not None
        text_tower = load_text_tower(folders.text, spec, settings)
        return cls(spec, text_tower, load_vision_tower(folders.image, spec, settings), seed=seed)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._dim

    def towers(self) -> dict[Tower, nn.Module]:
        """Both networks, without the heads."""
        return {"text": self.text_tower.model, "vision": self.vision_tower.network}

    def backbones(self) -> dict[str, Backbone]:
        """The two towers' models, a subfolder of a checkpoint each."""
        return {"text": self.text_tower.model, "image": self.vision_tower.model}

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor, *pooled_tokens: Tensor) -> Tensor:
        """[texts, tokens] each -> [texts, width]."""
        features: Tensor = self.text_tower(input_ids, attention_mask, *pooled_tokens)
        return features

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """`pixel_values` [images, 3, height, width], or NaFlex's tensors, -> [images, width]."""
        features: Tensor = self.vision_tower(images)
        return features

    def head(self, tower: Tower, features: Tensor) -> Tensor:
        """The tower's projection, [items, width] -> [items, dim]."""
        projected: Tensor = self.heads[tower](features)
        return projected

    def fixed_towers(self) -> tuple[Tower, ...]:
        """As of any model, without a vision tower that has a trainable gem exponent."""
        trainable = self.vision_tower.exponent is not None
        return tuple(tower for tower in super().fixed_towers() if tower != "vision" or not trainable)

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """As of any model, but with the vision tower's pooling in sentence-transformers' terms."""
        if subfolder == "text":
            return super().sentence_files(subfolder)
        return vision_sentence_files(self.vision_tower, tower_spec(self.spec, subfolder))

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The weights of the layers that follow the text tower's pooling, by their subfolder within it."""
        return self.text_tower.layers_after.states() if subfolder == "text" else {}
