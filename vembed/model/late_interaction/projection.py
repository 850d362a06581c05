"""The projection of hidden states to small token vectors: loaded, or new."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vembed.errors import ModelError
from vembed.model.backbones.layers import WEIGHTS_FILE, DenseLayer, VectorLayers, load_layers
from vembed.model.folder.sentence_transformers import modules_folder
from vembed.model.late_interaction.tokens import TokenVectors
from vembed.model.settings import ModelSettings
from vembed.model.spec import LayerSpec, ModelSpec
from vembed.model.vectors.rows import unit_vectors

DEFAULT_WIDTH = 128  # as in ColBERT


_INLINE = "linear.weight"


def project_tokens(hidden: Tensor, mask: Tensor, heads: nn.Module, spec: ModelSpec) -> TokenVectors:
    """Hidden states [sequences, tokens, width] -> vectors [sequences, tokens, dim], of length 1 if spec.normalize."""
    vectors: Tensor = heads(hidden)  # [sequences, tokens, dim]
    return TokenVectors(unit_vectors(vectors) if spec.normalize else vectors, mask)


def load_projection(
    spec: ModelSpec, folder: Path, width: int, settings: ModelSettings, *, seed: int
) -> tuple[ModelSpec, VectorLayers, bool]:
    """Spec, projection layers, and True if they are new: the folder's if the spec has layers, else a new linear one."""
    if spec.layers:
        inline = _inline_weight(folder) if len(spec.layers) == 1 else None
        if inline is None:
            return spec, load_layers(spec.layers, modules_folder(folder), width, settings), False
        heads = new_projection(spec.layers, seed)
        _load_inline(heads, inline, folder)
        return spec, heads, False
    spec = with_new_projection(spec, width)
    return spec, new_projection(spec.layers, seed), True


def with_new_projection(spec: ModelSpec, width: int) -> ModelSpec:
    """The spec with one linear layer. width: of the encoder's hidden states."""
    dim = spec.projection_dim or DEFAULT_WIDTH
    layer = LayerSpec(kind="dense", path="1_Dense", inputs=width, outputs=dim, bias=False, activation="Identity")
    return spec.model_copy(update={"layers": (layer,), "projection_dim": dim})


def new_projection(layers: tuple[LayerSpec, ...], seed: int) -> VectorLayers:
    """The layers with orthogonal weights drawn from `seed`, which keep angles best."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        heads = VectorLayers(layers)
    for layer in heads:
        assert isinstance(layer, DenseLayer)
        with torch.no_grad():
            nn.init.orthogonal_(layer.linear.weight, generator=generator)
    return heads


def _inline_weight(folder: Path) -> Tensor | None:
    """The projection's weight [dim, width] among the encoder's weights, as Stanford's ColBERT saves it; else None."""
    path = folder / WEIGHTS_FILE
    if not path.is_file() or (folder / "modules.json").is_file():
        return None
    with safe_open(path, "pt") as weights:
        found: Tensor | None = weights.get_tensor(_INLINE) if _INLINE in weights.keys() else None  # noqa: SIM118
        return found


def _load_inline(heads: VectorLayers, weight: Tensor, folder: Path) -> None:
    (layer,) = heads
    assert isinstance(layer, DenseLayer)
    if weight.shape != layer.linear.weight.shape:
        raise ModelError(
            f"{folder / WEIGHTS_FILE}: {_INLINE} is {tuple(weight.shape)}; config.json and artifact.metadata say"
            f" {tuple(layer.linear.weight.shape)}"
        )
    with torch.no_grad():
        layer.linear.weight.copy_(weight)
