"""The one base of all embedding models: named inputs in, one unit vector per row out."""

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vembed.errors import CheckpointError, ModelError
from vembed.model.adapters.layers import is_adapter, merged_state
from vembed.model.folder.find import JsonFiles, ModelFolders
from vembed.model.folder.sentence_transformers import sentence_files, tower_spec
from vembed.model.network.features import features_by_tower
from vembed.model.network.freezing import Freezing, keep_batch_norms_eval
from vembed.model.network.gradient_checkpointing import enable_checkpointing
from vembed.model.network.parameters import ParameterInfo, Part, layer_numbers
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import Modality, ModelSpec
from vembed.model.vectors.fusion import Fusion
from vembed.model.vectors.fusion_registry import SUM, FusionRegistry
from vembed.model.vectors.pooling import pool
from vembed.model.vectors.rows import one_vector_per_row, unit_vectors, widened
from vembed.types import Embeddings, Inputs, Ragged

__all__ = ["BaseEmbeddingModel", "disable_kv_cache", "pool", "unit_vectors"]

FUSION_PREFIX = "fusion."
NEW_TEMPERATURE = 0.1  # of SigLIP before training, with a bias of -10: https://arxiv.org/abs/2303.15343


class BaseEmbeddingModel(nn.Module):
    """Backbone, heads, logit scale and bias behind one forward: Inputs -> Embeddings [rows, dim].

    A family overrides `load`, `embed_text` or `embed_images` (or both), `dim`, `towers` and `backbones`.
    `parts` maps the beginning of a parameter's name to the part of the model it belongs to. `has_towers_apart`: no
    tower reads what another gives. `image_tensors` names what the processor gives per image. `start_temperature`: of a
    checkpoint without its own.
    """

    parts: ClassVar[Mapping[str, Part]] = {}
    has_towers_apart: ClassVar[bool] = True
    image_tensors: ClassVar[tuple[str, ...]] = ("pixel_values",)
    start_temperature: ClassVar[float] = 0.05
    keeps_states_of: ClassVar[Tower | None] = None

    def __init__(self, spec: ModelSpec, *, has_new_heads: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.has_new_heads = has_new_heads
        self.has_own_scale = False
        self.train_batch_norm = False
        self.checkpoints_gradients = False
        self.freezing = Freezing()
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / self.start_temperature)]))
        self.logit_bias: nn.Parameter | None = None
        self.fusion: Fusion | None = None
        self.has_new_fusion = False

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
        """[texts, tokens] twice -> [texts, dim], before normalisation."""
        raise ModelError(f"a {self.spec.family} model reads {self.spec.reads()}; it was given a text")

    def embed_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """The tensors of images, `pixel_values` [images, 3, height, width] among them -> [images, dim]."""
        raise ModelError(f"a {self.spec.family} model reads {self.spec.reads()}; it was given an image")

    def head(self, tower: Tower, features: Tensor) -> Tensor:
        """What the model makes of a tower's features, [items, width] -> [items, dim]; as they are without heads."""
        return features

    def fixed_towers(self) -> tuple[Tower, ...]:
        """The towers whose features of an item never change while the model learns, and that `forward` takes as given.

        None where a family has a forward of its own.
        """
        takes_features = self.has_towers_apart and type(self).forward is BaseEmbeddingModel.forward
        return tuple(tower for tower in self.spec.towers if tower in self.freezing.towers and takes_features)

    def with_fixed_states(self, inputs: Inputs) -> Inputs:
        """Finished inputs with a vector per token in the place of what the tower `keeps_states_of` reads; no graph.

        Asked only if that tower is frozen. `forward` gives the same for both inputs.
        """
        raise ModelError(f"{type(self).__name__} does not say what it keeps of its {self.keeps_states_of} tower")

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings [rows, dim] of finished inputs, in row order.

        A row with several images, or with text and image, gets the normalised mean of their unit vectors (first over
        the images, then over text and image, unless the model has a fusion for that). A model that does not normalise
        gives the mean of the images' vectors as they are.
        """
        slices = []
        for tower, features in features_by_tower(self, inputs):
            vectors = self.head(tower, features.values)  # [slices, width] -> [slices, dim]
            slices.append(Ragged(widened(vectors), features.counts))
        return _rows(self, slices, self.fusion)  # [rows, dim]

    def tower_features(self, inputs: Inputs) -> Embeddings:
        """As forward, but without projection heads and fusion that were added to pretrained towers."""
        slices = [Ragged(widened(given.values), given.counts) for _, given in features_by_tower(self, inputs)]
        return _rows(self, slices)  # [rows, width]

    def fuse(self, name: str, seed: int) -> None:
        """Join text and images of a row by the fusion of this name, new and drawn from `seed`; a sum has no weights."""
        self.spec = self.spec.model_copy(update={"fusion": name})
        self.fusion = None
        if name != SUM:
            with torch.random.fork_rng(devices=[]):
                self.fusion = FusionRegistry.get(name)(self.dim)
            self.fusion.initialize(torch.Generator().manual_seed(seed))
        self.has_new_fusion = self.fusion is not None

    def takes_adapter(self, name: str) -> bool:
        """Whether a linear layer within a tower gets an adapter unless lora_target_modules says otherwise."""
        return True

    def learns_whole(self, name: str) -> bool:
        """Whether a layer of a backbone outside the towers learns as it is beside adapters, as a projection does."""
        return True

    def can(self, modalities: Iterable[Modality]) -> bool:
        """Whether the model reads all of these."""
        return self.spec.can(modalities)

    def set_temperature(self, temperature: float) -> None:
        """Start the logit scale at log(1 / temperature)."""
        with torch.no_grad():
            self.logit_scale.fill_(math.log(1 / temperature))

    def add_bias(self, temperature: float | None) -> None:
        """Give a model without a bias of its scores one, minus the scale: no pair is thought right yet, as in SigLIP.

        temperature: of the scores from now on; None: SigLIP's at its start, 0.1, or the family's where that is higher.
        Does nothing to a model with a bias.
        """
        if self.logit_bias is None:
            start = max(NEW_TEMPERATURE, self.start_temperature)
            self.set_temperature(start if temperature is None else temperature)
            self.logit_bias = nn.Parameter(-self.logit_scale.detach().exp())

    def freeze(self, towers: Collection[Tower]) -> None:
        """Stop these towers from learning, now and for the model's life; they also run in eval mode (no dropout)."""
        self.freezing.freeze(self, towers)

    def freeze_layers(self, num_layers: Mapping[Tower, int]) -> None:
        """Stop so many first layers of these towers, with their embeddings, from learning; they run in eval mode."""
        self.freezing.freeze_layers(self, num_layers)

    def parameter_infos(self) -> list[ParameterInfo]:
        """Every parameter once, in order of definition."""
        parameters = dict(self.named_parameters())
        layers: dict[str, tuple[int, int]] = {}
        for tower in self.spec.towers:
            names = [name for name in parameters if self.part_of(name) == tower and not is_adapter(name)]
            numbers, num_layers = layer_numbers(names)
            layers |= {name: (number, num_layers) for name, number in zip(names, numbers, strict=True)}
        return [
            ParameterInfo(
                name, parameter, self.part_of(name), self._is_pretrained(name), *layers.get(name, (None, None))
            )
            for name, parameter in parameters.items()
        ]

    def train(self, mode: bool = True) -> "BaseEmbeddingModel":
        """As nn.Module, but frozen towers stay in eval mode, and batch norms too unless train_batch_norm."""
        super().train(mode)
        self.freezing.keep_eval(self.towers())
        if not self.train_batch_norm:
            keep_batch_norms_eval(self)
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of the towers that learn during the backward pass."""
        self.checkpoints_gradients = True
        for tower, module in self.towers().items():
            if tower not in self.freezing.towers:
                enable_checkpointing(module, tower)

    def backbone_state(self, subfolder: str) -> dict[str, Tensor]:
        """The weights of one of the backbones as transformers knows them, adapters merged in."""
        return merged_state(self.backbones()[subfolder])

    def save_backbone(self, subfolder: str, folder: Path) -> None:
        """Write one of the backbones as transformers opens it, adapters merged in."""
        self.backbones()[subfolder].save_pretrained(folder, state_dict=self.backbone_state(subfolder))

    def sentence_files(self, subfolder: str) -> JsonFiles:
        """The JSON files by which sentence-transformers opens one of the backbones' folders as this model uses it."""
        config = self.backbones()[subfolder].config
        width = int(getattr(config, "hidden_size", 0) or 0)
        return sentence_files(tower_spec(self.spec, subfolder), width)

    def layer_states(self, subfolder: str) -> dict[str, dict[str, Tensor]]:
        """The weights of the layers that sentence-transformers keeps beside that backbone, by their subfolder."""
        return {}

    def heads_state(self) -> dict[str, Tensor]:
        """The parameters that no backbone holds: logit scale, bias and heads, as plain tensors."""
        names = [name for name, _ in self.named_parameters() if self.part_of(name) in ("heads", "scale")]
        state = self.state_dict()
        return {name: state[name].detach().cpu().clone().contiguous() for name in names}

    def load_heads_state(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Restore what `heads_state` gave. Raises CheckpointError when names or shapes do not fit."""
        if "logit_bias" in state and self.logit_bias is None:
            self.logit_bias = nn.Parameter(torch.zeros_like(state["logit_bias"]))
        own = self.heads_state()
        wrong = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
        if wrong:
            raise CheckpointError(f"{source} does not fit this model: {', '.join(sorted(wrong))} differ")
        self.load_state_dict(dict(state), strict=False)
        self.has_own_scale = True
        self.has_new_heads = False
        self.has_new_fusion = False

    def part_of(self, name: str) -> Part:
        """The part that a parameter belongs to, by `parts`."""
        if name in ("logit_scale", "logit_bias"):
            return "scale"
        if name.startswith(FUSION_PREFIX):
            return "heads"
        return next(part for prefix, part in self.parts.items() if name.startswith(prefix))

    def _is_pretrained(self, name: str) -> bool:
        part = self.part_of(name)
        if part == "scale":
            return self.has_own_scale
        if name.startswith(FUSION_PREFIX):
            return not self.has_new_fusion
        return not self.has_new_heads if part == "heads" else not is_adapter(name)


def _rows(model: BaseEmbeddingModel, slices: list[Ragged], fusion: Fusion | None = None) -> Embeddings:
    """The slices of each tower [slices, dim] -> one vector per row [rows, dim]."""
    if not slices:
        return Embeddings(model.logit_scale.new_zeros(0, model.dim))
    return Embeddings(one_vector_per_row(slices, model.spec.normalize, fusion))


def disable_kv_cache(model: nn.Module) -> None:
    """Tell a transformers model and its parts to keep no keys and values: an embedding is one pass."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            config.use_cache = False


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
