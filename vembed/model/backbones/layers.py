"""Dense, LayerNorm, Normalize and Dropout layers between pooling and embedding, as sentence-transformers saves them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from vembed.errors import ModelError
from vembed.model.folder.sentence_layers import width_after
from vembed.model.settings import ModelSettings
from vembed.model.spec import LayerSpec
from vembed.utils.untrusted import library_errors

WEIGHTS_FILE = "model.safetensors"
_PICKLE = "pytorch_model.bin"


class DenseLayer(nn.Module):
    """activation(linear(vector)), [items, inputs] -> [items, outputs], with the vector added where `residual`."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.inputs, spec.outputs, bias=spec.bias)
        self.activation: nn.Module = getattr(nn, spec.activation)()
        self.adds_input = spec.residual
        projects = spec.residual and spec.inputs != spec.outputs
        self.residual = nn.Linear(spec.inputs, spec.outputs, bias=False) if projects else None

    def forward(self, vectors: Tensor) -> Tensor:
        """[items, inputs] -> [items, outputs]."""
        output: Tensor = self.activation(self.linear(vectors))
        if not self.adds_input:
            return output
        return output + (vectors if self.residual is None else self.residual(vectors))


class LayerNormLayer(nn.Module):
    """Layer normalisation of vectors [items, width]."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """[items, width] -> [items, width]."""
        output: Tensor = self.norm(vectors)
        return output


class NormalizeLayer(nn.Module):
    """L2-normalises vectors [items, width]."""

    def forward(self, vectors: Tensor) -> Tensor:
        """[items, width] -> [items, width]."""
        return functional.normalize(vectors, dim=-1)


class VectorLayers(nn.ModuleList):
    """The layers that follow the pooling, in order; the identity without any."""

    def __init__(self, specs: Sequence[LayerSpec] = ()) -> None:
        super().__init__(_build_layer(spec) for spec in specs)
        self.specs = tuple(specs)

    def forward(self, vectors: Tensor) -> Tensor:
        """[items, width] -> [items, width after the layers], in the dtype of the layers' weights."""
        weight = next(self.parameters(), None)
        vectors = vectors if weight is None else vectors.to(weight.dtype)
        for layer in self:
            vectors = layer(vectors)
        return vectors

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The state dict of each layer that has weights, by its subfolder; tensors share memory with the layer."""
        weights = {spec.path: layer.state_dict() for spec, layer in zip(self.specs, self, strict=True)}
        return {path: state for path, state in weights.items() if state}


def load_layers(specs: Sequence[LayerSpec], folder: Path, width: int, settings: ModelSettings) -> VectorLayers:
    """The layers whose subfolders lie in `folder`, for vectors of that width. Raises ModelError."""
    width_after(width, specs, folder)
    with torch.device("meta"):  # their sizes are a file's words until the weights agree
        layers = VectorLayers(specs)
    for spec, layer in zip(specs, layers, strict=True):
        if next(layer.parameters(), None) is not None:
            _load_weights(layer, folder / spec.path, settings)
    return layers


def _build_layer(spec: LayerSpec) -> nn.Module:
    if spec.kind == "dense":
        return DenseLayer(spec)
    if spec.kind == "layer_norm":
        return LayerNormLayer(spec)
    return nn.Dropout(spec.probability) if spec.kind == "dropout" else NormalizeLayer()


def _load_weights(layer: nn.Module, folder: Path, settings: ModelSettings) -> None:
    path = folder / WEIGHTS_FILE
    pickled = folder / _PICKLE
    if not path.is_file() and pickled.is_file():
        if not settings.allow_pickled_weights:
            raise ModelError(
                f"{path} is missing; {_PICKLE} is a pickle, which can run code when it is opened. Save the layer as"
                " safetensors, or set allow_pickled_weights: true (--allow_pickled_weights), which reads tensors and"
                " runs nothing"
            )
        path = pickled
    if not path.is_file():
        raise ModelError(f"{path} is missing: the weights of a layer that modules.json names")
    with library_errors(ModelError, f"{path} does not fit {folder / 'config.json'}"):
        state = load_file(path) if path != pickled else torch.load(path, map_location="cpu", weights_only=True)
        layer.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
