"""Frozen towers and frozen layers: no gradient, no dropout, and features of an item that can be computed once.

Freezing.freeze           freezes whole towers
Freezing.freeze_layers    freezes the first layers of towers
Freezing.keep_eval        puts what is frozen back into eval mode, after each model.train()
with_fixed_features       inputs -> inputs that hold the features of frozen towers in the place of their tensors
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.grad_cache.batch_norm import is_batch_norm
from vembed.model.network.features import FEATURES, features_of, input_names
from vembed.model.network.frozen_layers import FrozenLayers
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import Tower
from vembed.types import Inputs

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel


class Freezing:
    """The frozen towers of a model, and the frozen first layers of its other towers; nothing is unfrozen again.

    Methods take the model, which would otherwise be in a reference cycle and not be freed at once.
    """

    def __init__(self) -> None:
        self.towers: frozenset[Tower] = frozenset()
        self.layers: dict[Tower, FrozenLayers] = {}

    def freeze(self, model: "BaseEmbeddingModel", towers: Collection[Tower]) -> None:
        """Freeze whole towers. Raises ModelError for towers that the model lacks, or if nothing stays trainable."""
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
        """Freeze the embeddings and so many first layers of these towers.

        Raises ModelError for towers that have no more layers than that, or adapters on these layers.
        """
        _refuse_twice(set(num_layers) & self.towers)
        for tower, number in num_layers.items():
            layers = FrozenLayers(tower, model.towers()[tower], number)
            layers.freeze()
            self.layers[tower] = layers
        model.train(model.training)

    def keep_eval(self, towers: Mapping[Tower, nn.Module]) -> None:
        """Put frozen towers and layers into eval mode: without dropout."""
        for tower, module in towers.items():
            if tower in self.towers:
                module.eval()
        for layers in self.layers.values():
            layers.eval()


def keep_batch_norms_eval(network: nn.Module) -> None:
    """Put batch norms into eval mode: with batch statistics an embedding would depend on the rest of its chunk."""
    for module in network.modules():
        if is_batch_norm(module):
            module.eval()


def keeps_states(model: "BaseEmbeddingModel") -> bool:
    """True if `with_fixed_features` keeps a vector per token: so much memory that the training loop limits it."""
    return model.keeps_states_of in model.freezing.towers


def with_fixed_features(model: "BaseEmbeddingModel", inputs: Inputs) -> Inputs:
    """Finished inputs with the features of frozen towers in the place of the tensors that they read; without a graph.

    `forward` gives the same embeddings for both inputs, and does not run the frozen towers for the second.
    """
    if model.keeps_states_of is not None:
        return model.with_fixed_states(inputs) if keeps_states(model) and inputs.num_rows else inputs
    tensors = dict(inputs.tensors)
    for tower in model.fixed_towers():
        with torch.no_grad():
            features = features_of(model, tower, inputs)  # [slices, width]
        if features is not None:
            for name in input_names(model, tower):
                tensors.pop(name, None)
            tensors[FEATURES[tower]] = features
    return replace(inputs, tensors=tensors)


def fixed_state(model: "BaseEmbeddingModel", tower: Tower) -> dict[str, Tensor]:
    """A tower's parameters and buffers, by name: if they change, its kept features are no longer valid."""
    return {name: tensor for name, tensor in model.state_dict().items() if model.part_of(name) == tower}


def _refuse_twice(towers: Collection[Tower]) -> None:
    if towers:
        raise ModelError(
            f"freeze_layers: the whole {' and '.join(sorted(towers))} tower is frozen (by freeze, or a rate of 0);"
            " keep the one or the other"
        )
