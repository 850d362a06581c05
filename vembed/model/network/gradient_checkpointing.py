"""Gradient checkpointing: activations of a transformers network are computed again in the backward pass."""

import inspect
from typing import TYPE_CHECKING, Any

from vembed.errors import ModelError
from vembed.model.settings import Tower

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel


def enable_gradient_checkpointing(model: "BaseEmbeddingModel") -> None:
    """Recompute the activations of the towers that learn during the backward pass.

    Raises ModelError for one that cannot.
    """
    model.checkpoints_gradients = True
    for tower, network in model.towers().items():
        if tower not in model.freezing.towers:
            _enable(network, tower)


def _enable(network: Any, tower: Tower) -> None:  # Any: transformers is untyped here
    if not getattr(network, "supports_gradient_checkpointing", False):  # code of a checkpoint's own may not say
        raise ModelError(f"gradient_checkpointing: the {tower} tower ({type(network).__name__}) does not support it")
    # transformers renamed the method in 5.x and warns about the old name.
    enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    # transformers lets embeddings take a gradient, so that frozen layers would have a graph. Only reentrant
    # checkpointing needs that, which code of before transformers 4.35 may do.
    if "value" not in inspect.signature(network._set_gradient_checkpointing).parameters:
        network.disable_input_require_grads()
