"""Gradient checkpointing: activations of a transformers network are recomputed in the backward pass."""

import inspect
from typing import TYPE_CHECKING, Any

from vembed.errors import ModelError
from vembed.model.settings import Tower

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel


def enable_gradient_checkpointing(model: "BaseEmbeddingModel") -> None:
    """Turn gradient checkpointing on for the trainable towers. Raises ModelError for one that does not support it."""
    model.checkpoints_gradients = True
    for tower, network in model.towers().items():
        if tower not in model.freezing.towers:
            _enable(network, tower)


def _enable(network: Any, tower: Tower) -> None:  # Any: transformers is untyped here
    if not getattr(network, "supports_gradient_checkpointing", False):  # a checkpoint's own code may lack it
        raise ModelError(f"gradient_checkpointing: the {tower} tower ({type(network).__name__}) does not support it")
    # transformers renamed the method in 5.x and warns about the old name.
    enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    # transformers makes the embeddings' output require a gradient, so that frozen layers would have a graph. Only
    # reentrant checkpointing needs that, which remote code from before transformers 4.35 may use.
    if "value" not in inspect.signature(network._set_gradient_checkpointing).parameters:
        network.disable_input_require_grads()
