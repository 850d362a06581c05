"""The one base of all embedding models: named inputs in, one vector per row out, or one per token."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.adapters.layers import merged_state
from vembed.model.folder.find import JsonFiles, ModelFolders
from vembed.model.folder.sentence_transformers import sentence_files, tower_spec
from vembed.model.network.features import features_by_tower
from vembed.model.network.freezing import Freezing, keep_batch_norms_eval
from vembed.model.network.parameters import FUSION_PREFIX, Part
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec
from vembed.model.vectors.fusion import Fusion
from vembed.model.vectors.pooling import pool
from vembed.model.vectors.rows import one_vector_per_row, widened
from vembed.types import Embeddings, Inputs, Ragged

__all__ = ["BaseEmbeddingModel", "disable_kv_cache", "pool"]


class BaseEmbeddingModel(nn.Module):
    """Towers, heads, logit scale and bias behind one forward: Inputs -> Embeddings [rows, dim].

        Inputs               texts and images of rows, finished by the processor; or features in the place of them
        towers               embed_text, embed_images, each by itself     -> features [slices, width]
        heads                head; as they are in most families           -> vectors [slices, dim], float32
        one vector per row   mean of a row's unit vectors, or a fusion    -> Embeddings [rows, dim], length 1

    A slice is one text or one image; a row has a text, images, or both. A family overrides `load`, `embed_text` or
    `embed_images` (or both), `dim`, `towers` and `backbones`; a model that reads texts and images in one sequence, or
    has a vector per token, overrides `forward`. All that a family may override (-> what it gives; the default):

    - parts: beginnings of parameters' names -> text, vision or heads; none
    - image_tensors: -> names of what the processor gives per image; pixel_values
    - has_towers_apart: -> True if no tower reads another's outputs; True
    - start_temperature: -> initial temperature of a checkpoint without its own; 0.05
    - keeps_states_of: -> the tower whose outputs `with_fixed_states` computes; None
    - load: spec, folders, settings, seed -> the pretrained model; refused
    - dim: -> width of an embedding; refused
    - towers: -> the pretrained network of each tower; none
    - backbones: -> transformers models by subfolder of a checkpoint; none
    - embed_text: ids and mask [texts, tokens] -> features [texts, width]; refused
    - embed_images: tensors [images, ...] by name -> features [images, width]; refused
    - head: tower, features [slices, width] -> vectors [slices, dim]; as they are
    - forward: Inputs -> Embeddings [rows, dim] or [rows, tokens, dim]; as above
    - tower_features: Inputs -> as forward, but without new heads and fusion [rows, width]; as above
    - fixed_towers: -> frozen towers whose features `forward` takes from inputs; all frozen, if `forward` is this one
    - with_fixed_states: Inputs -> Inputs with a frozen tower's outputs [tokens, width] for its inputs; refused
    - part_of: a parameter's name -> text, vision, heads or scale; by `parts`
    - takes_adapter: a linear layer's name in a tower -> True if it gets an adapter by default; True
    - learns_whole: a layer's name outside the towers -> True if it is trained in full beside adapters; True
    - backbone_state: subfolder -> a backbone's tensors by name, adapters merged in; its state_dict
    - save_backbone: subfolder, folder -> its files, as transformers opens them; by save_pretrained
    - sentence_files: subfolder -> JSON files by which sentence-transformers opens it; by its spec
    - layer_states: subfolder -> tensors of the layers that sentence-transformers keeps beside it; none
    """

    parts: ClassVar[Mapping[str, Part]] = {}
    has_towers_apart: ClassVar[bool] = True
    image_tensors: ClassVar[tuple[str, ...]] = ("pixel_values",)
    start_temperature: ClassVar[float] = 0.05
    keeps_states_of: ClassVar[Tower | None] = None

    def __init__(self, spec: ModelSpec, *, has_new_heads: bool = False) -> None:
        super().__init__()
        self.spec = spec
        # What is new is drawn from a seed and learns at the heads' rate; what is own came with the checkpoint.
        self.has_new_heads = has_new_heads
        self.has_new_fusion = False
        self.has_own_scale = False
        self.train_batch_norm = False
        self.checkpoints_gradients = False
        self.freezing = Freezing()
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / self.start_temperature)]))
        self.logit_bias: nn.Parameter | None = None  # [1], for losses that judge each pair by itself
        self.fusion: Fusion | None = None  # None: a sum

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> "BaseEmbeddingModel":
        """The pretrained model in `folders`; new parameters are drawn from `seed`."""
        raise ModelError(f"{cls.__name__} cannot be loaded from a folder")

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        raise ModelError(f"{type(self).__name__} does not say how wide its embeddings are")

    def towers(self) -> dict[Tower, nn.Module]:
        """The pretrained network of each tower, without projections."""
        return {}

    # Any: transformers is untyped here
    def backbones(self) -> dict[str, Any]:
        """The transformers models that hold all pretrained weights, by subfolder of a checkpoint."""
        return {}

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The text tower's features [texts, width] of ids and mask, [texts, tokens] each, before `head`.

        In families without heads that is [texts, dim], not normalised. Families whose processor gives `pooled_tokens`
        take them as a third argument, bool [texts, tokens].
        """
        raise ModelError(f"a {self.spec.family} model reads {self.spec.reads()}; it was given a text")

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """The vision tower's features [images, width], before `head`; in families without heads [images, dim].

        images: tensors by name, `pixel_values` [images, 3, height, width] among them.
        """
        raise ModelError(f"a {self.spec.family} model reads {self.spec.reads()}; it was given an image")

    def head(self, tower: Tower, features: Tensor) -> Tensor:
        """A tower's features [slices, width] -> vectors [slices, dim]; as they are in families without heads."""
        return features

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, dim] of finished inputs, in row order.

            for tower in text, vision, if a row has what it reads:
                features = embed_text(...) or embed_images(...), or what the inputs hold of them    [slices, width]
                vectors  = head(tower, features), in float32 if they are of 16 bits                 [slices, dim]
                means    = unit(mean of a row's unit(vectors))                                      [rows, dim]
            embeddings = unit(means of text + means of vision), or the fusion of the two            [rows, dim]

        A row with several images, or with text and image, gets the normalised mean of their unit vectors (first over
        the images, then over text and image, unless the model has a fusion for that). A model that does not normalise
        gives the mean of the images' vectors as they are.
        """
        towers = []
        for tower, features in features_by_tower(self, inputs):  # [slices, width]
            vectors = widened(self.head(tower, features.values))  # [slices, dim]
            towers.append(Ragged(vectors, features.counts))
        return _rows(self, towers, self.fusion)  # [rows, dim]

    def tower_features(self, inputs: Inputs) -> Embeddings:
        """As forward, but without projection heads and fusion that were added to pretrained towers."""
        found = [features for _, features in features_by_tower(self, inputs)]  # [slices, width] each
        return _rows(self, [Ragged(widened(one.values), one.counts) for one in found])  # [rows, width]

    def fixed_towers(self) -> tuple[Tower, ...]:
        """The frozen towers whose features of an item never change, and can be given to `forward` in its inputs.

        () where a family has a forward of its own.
        """
        # A forward of the family's own may read the inputs in any way, and would not look for features among them.
        takes_features = self.has_towers_apart and type(self).forward is BaseEmbeddingModel.forward
        return tuple(tower for tower in self.spec.towers if tower in self.freezing.towers and takes_features)

    def with_fixed_states(self, inputs: Inputs) -> Inputs:
        """Finished inputs with the outputs [tokens, width] of tower `keeps_states_of` for its inputs; no graph.

        Called only if that tower is frozen. `forward` gives the same for both inputs.
        """
        raise ModelError(f"{type(self).__name__} does not say what it keeps of its {self.keeps_states_of} tower")

    def part_of(self, name: str) -> Part:
        """The part of the model that a parameter (or buffer) belongs to, by the beginnings of names in `parts`."""
        if name in ("logit_scale", "logit_bias"):
            return "scale"
        if name.startswith(FUSION_PREFIX):
            return "heads"
        # The first that fits: a family lists what lies within another part before that part.
        return next(part for prefix, part in self.parts.items() if name.startswith(prefix))

    def takes_adapter(self, name: str) -> bool:
        """True if a linear layer within a tower gets an adapter by default, without lora_target_modules."""
        return True

    def learns_whole(self, name: str) -> bool:
        """True if a backbone's layer outside the towers, such as a projection, is trained in full beside adapters."""
        return True

    def freeze(self, towers: Collection[Tower]) -> None:
        """Freeze these towers for good; they stay in eval mode (no dropout)."""
        self.freezing.freeze(self, towers)

    def freeze_layers(self, num_layers: Mapping[Tower, int]) -> None:
        """Freeze the embeddings and so many first layers of these towers for good; they stay in eval mode."""
        self.freezing.freeze_layers(self, num_layers)

    def train(self, mode: bool = True) -> "BaseEmbeddingModel":
        """As nn.Module, but frozen towers stay in eval mode, and batch norms too unless train_batch_norm."""
        super().train(mode)
        self.freezing.keep_eval(self.towers())
        if not self.train_batch_norm:
            keep_batch_norms_eval(self)
        return self

    def backbone_state(self, subfolder: str) -> dict[str, Tensor]:
        """The state dict of one of the backbones by transformers' names, adapters merged in."""
        return merged_state(self.backbones()[subfolder])

    def save_backbone(self, subfolder: str, folder: Path) -> None:
        """Write one of the backbones so that transformers can load it, adapters merged in."""
        self.backbones()[subfolder].save_pretrained(folder, state_dict=self.backbone_state(subfolder))

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The JSON files with which sentence-transformers gives this model's embeddings from a backbone's folder."""
        config = self.backbones()[subfolder].config
        width = int(getattr(config, "hidden_size", 0) or 0)
        return sentence_files(tower_spec(self.spec, subfolder), width)

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The state dicts of the layers that sentence-transformers keeps beside that backbone, by their subfolder."""
        return {}


def _rows(model: BaseEmbeddingModel, towers: list[Ragged], fusion: Fusion | None = None) -> Embeddings:
    """The vectors of each tower [slices, dim] to one per row [rows, dim]; without a tower there is no row."""
    if not towers:
        return Embeddings(model.logit_scale.new_zeros(0, model.dim))
    return Embeddings(one_vector_per_row(towers, model.spec.normalize, fusion))


def disable_kv_cache(model: nn.Module) -> None:
    """Turn the KV cache of a transformers model and its modules off: an embedding is one forward."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            config.use_cache = False
