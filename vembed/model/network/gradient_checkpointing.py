"""Gradient checkpointing: activations of a transformers network are computed again in the backward pass."""

import inspect
from typing import Any

from vembed.errors import ModelError
from vembed.model.settings import Tower
from vembed.utils.onednn import quick_again


def enable_checkpointing(network: Any, tower: Tower) -> bool:  # Any: transformers is untyped here
    """Recompute the activations of a tower's network. Raises ModelError for one that cannot.

    Gives whether it lets itself be told how, so that what `quick_linear` computed is computed by the same again.
    """
    if not getattr(network, "supports_gradient_checkpointing", False):  # code of a checkpoint's own may not say
        raise ModelError(f"gradient_checkpointing: the {tower} tower ({type(network).__name__}) does not support it")
    # transformers renamed the method in 5.x and warns about the old name.
    enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
    enable({"use_reentrant": False, "context_fn": quick_again})
    # transformers lets embeddings take a gradient, so that frozen layers would have a graph. Only reentrant
    # checkpointing needs that, which code of before transformers 4.35 may do.
    if "value" not in inspect.signature(network._set_gradient_checkpointing).parameters:
        network.disable_input_require_grads()
    # timm, and code of a checkpoint's own, call torch by themselves.
    return any(hasattr(module, "_gradient_checkpointing_func") for module in network.modules())
