"""The config.json of sentence-transformers' Dense, LayerNorm, Normalize and Dropout modules: read, and written."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from vembed.errors import ModelError
from vembed.model.folder.find import Json, read_table
from vembed.model.spec import LayerSpec

LAYER_KINDS = {"Dense": "dense", "LayerNorm": "layer_norm", "Normalize": "normalize", "Dropout": "dropout"}
KIND_OF_LAYER = {layer: kind for kind, layer in LAYER_KINDS.items()}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "Mish", "Softsign", "LeakyReLU", "ELU")
VECTOR = "sentence_embedding"
TOKENS = "token_embeddings"


def read_layer(folder: Path, kind: str, path: str, input_name: str = VECTOR) -> LayerSpec:
    """The spec of a module of modules.json that follows the pooling (or the encoder, of a late-interaction model).

    input_name: the feature that it transforms, VECTOR or TOKENS. Raises ModelError for one that is not supported.
    """
    file = folder / path / "config.json"
    config: Json = read_table(file) or {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, input_name):
            able = "the pooled vector" if input_name == VECTOR else input_name
            raise ModelError(f"{file}: {kind} works on {config[key]}; only layers on {able} are supported")
    if kind == "Normalize":
        return LayerSpec(kind="normalize", path=path)
    if not config:
        raise ModelError(f"{file} is missing; modules.json says that {kind} is described there")
    try:
        return _layer(kind, path, config, file)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ModelError(f"{file} does not describe a {kind} layer: {type(error).__name__} {error}") from error


def layer_config(layer: LayerSpec) -> Json:
    """The config.json of a layer."""
    if layer.kind == "normalize":
        return {}
    if layer.kind == "dropout":
        return {"dropout": layer.probability}
    if layer.kind == "layer_norm":
        return {"dimension": layer.outputs}
    module = "linear" if layer.activation == "Identity" else "activation"
    config = {
        "in_features": layer.inputs,
        "out_features": layer.outputs,
        "bias": layer.bias,
        "activation_function": f"torch.nn.modules.{module}.{layer.activation}",
    }
    return config | ({"use_residual": True} if layer.residual else {})


def width_after(width: int, layers: Sequence[LayerSpec], folder: Path) -> int:
    """The width of vectors after the layers, from that before. Raises ModelError if a layer takes another width."""
    for layer in layers:
        if layer.inputs not in (0, width):
            raise ModelError(
                f"{folder / layer.path / 'config.json'} takes vectors of {layer.inputs} numbers; what comes before"
                f" gives {width}"
            )
        width = layer.outputs or width
    return width


def _layer(kind: str, path: str, config: Json, file: Path) -> LayerSpec:
    if kind == "Dropout":
        return LayerSpec(kind="dropout", path=path, probability=config["dropout"])
    if kind == "LayerNorm":
        return LayerSpec(kind="layer_norm", path=path, inputs=config["dimension"], outputs=config["dimension"])
    return LayerSpec(
        kind="dense",
        path=path,
        inputs=config["in_features"],
        outputs=config["out_features"],
        bias=config.get("bias", True),
        activation=_activation(config, file),
        residual=config.get("use_residual", False),
    )


def _activation(config: Json, file: Path) -> str:
    name = str(config.get("activation_function", "torch.nn.Tanh"))
    own = name.rsplit(".", 1)[-1]
    if not name.startswith("torch.nn.") or own not in ACTIVATIONS:
        raise ModelError(f"{file}: activation_function {name} is not supported; known are: {', '.join(ACTIVATIONS)}")
    return own
