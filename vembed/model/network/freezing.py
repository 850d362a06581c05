"""Frozen towers and frozen layers: they do not learn, run without dropout, and may be run once where others run often.

Freezing.freeze           whole towers stop learning
Freezing.freeze_layers    the first layers of towers do
Freezing.keep_eval        after each change between training and evaluation: what is frozen stays in eval mode
with_fixed_features       inputs -> inputs that hold what frozen towers give for them, and `forward` goes on from it
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.grad_cache.batch_norm import is_batch_norm
from vembed.model.network.features import FEATURES, features_of, tensors_read
from vembed.model.network.frozen_layers import FrozenLayers
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import Tower
from vembed.types import Inputs

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel


class Freezing:
    """Which towers of a model, and which first layers of its other towers, are frozen, for the model's life.

    It is given the model and does not hold it, so that a model that is let go of is gone at once.
    """

    def __init__(self) -> None:
        self.towers: frozenset[Tower] = frozenset()
        self.layers: dict[Tower, FrozenLayers] = {}

    def freeze(self, model: "BaseEmbeddingModel", towers: Collection[Tower]) -> None:
        """Freeze these towers as a whole. Raises ModelError for towers that there are not, or if none is to learn."""
        absent = [tower for tower in towers if tower not in model.spec.towers]
        if absent:
            raise ModelError(
                f"freeze: a {model.spec.family} model has no {absent[0]} tower; it reads {model.spec.reads()}"
            )
        infos = parameter_infos(model)
        has_heads = any(info.part == "heads" for info in infos)
        if set(towers) == set(model.spec.towers) and not has_heads:
            raise ModelError(f"freeze: nothing is left to learn when {' and '.join(towers)} are frozen")
        _refuse_twice(set(towers) & set(self.layers))
        self.towers = self.towers | frozenset(towers)
        for info in infos:
            if info.part in self.towers:
                info.parameter.requires_grad_(False)
        model.train(model.training)

    def freeze_layers(self, model: "BaseEmbeddingModel", num_layers: Mapping[Tower, int]) -> None:
        """Freeze so many first layers of these towers, and their embeddings.

        Raises ModelError for towers without so many layers below one that learns, or with adapters on them.
        """
        _refuse_twice(set(num_layers) & self.towers)
        for tower, number in num_layers.items():
            layers = FrozenLayers(tower, model.towers()[tower], number)
            layers.stop_learning()
            self.layers[tower] = layers
        model.train(model.training)

    def keep_eval(self, towers: Mapping[Tower, nn.Module]) -> None:
        """Let what is frozen of these towers run as in evaluation: without dropout."""
        for tower, module in towers.items():
            if tower in self.towers:
                module.eval()
        for layers in self.layers.values():
            layers.eval()


def keep_batch_norms_eval(network: nn.Module) -> None:
    """Make batch norms use their running statistics: an embedding must not depend on the rest of its chunk."""
    for module in network.modules():
        if is_batch_norm(module):
            module.eval()


def keeps_states(model: "BaseEmbeddingModel") -> bool:
    """Whether `with_fixed_features` gives a vector per token, which is large, and kept up to a limit."""
    return model.keeps_states_of in model.freezing.towers


def with_fixed_features(model: "BaseEmbeddingModel", inputs: Inputs) -> Inputs:
    """Finished inputs with what each frozen tower gives in the place of what it reads; no graph.

    `forward` gives the same for both inputs, and runs no fixed tower for the second.
    """
    if model.keeps_states_of is not None:
        return model.with_fixed_states(inputs) if keeps_states(model) and inputs.num_rows else inputs
    tensors = dict(inputs.tensors)
    for tower in model.fixed_towers():
        with torch.no_grad():
            features = features_of(model, tower, inputs)  # [slices, width]
        if features is not None:
            for name in tensors_read(model, tower):
                tensors.pop(name, None)
            tensors[FEATURES[tower]] = features
    return replace(inputs, tensors=tensors)


def fixed_state(model: "BaseEmbeddingModel", tower: Tower) -> dict[str, Tensor]:
    """The parameters and buffers of a fixed tower, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if model.part_of(name) == tower}


def _refuse_twice(towers: Collection[Tower]) -> None:
    if towers:
        raise ModelError(
            f"freeze_layers: the whole {' and '.join(sorted(towers))} tower is frozen (by freeze, or a rate of 0);"
            " keep the one or the other"
        )
