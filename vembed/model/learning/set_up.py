"""Prepare a loaded model for training: freezing, adapters, gradient checkpointing, compilation."""

from vembed.model.base import BaseEmbeddingModel
from vembed.model.learning.compilation import compile_towers
from vembed.model.learning.lora import add_adapters, continue_adapters, freeze_untrained_towers, has_adapters
from vembed.model.network.gradient_checkpointing import enable_gradient_checkpointing
from vembed.model.settings import ModelSettings


def set_up_learning(model: BaseEmbeddingModel, settings: ModelSettings, seed: int) -> None:
    """Freeze, add or continue adapters, checkpoint and compile, as set; new adapters are drawn from `seed`.

    In this order, so that no step undoes another. Raises ModelError for settings that the model does not support.
    """
    continued = settings.use_lora and has_adapters(model)
    if continued:
        continue_adapters(model, settings)
    if settings.freeze:
        model.freeze(settings.freeze)
    if settings.freeze_layers:
        model.freeze_layers(settings.freeze_layers)
    if settings.use_lora and not continued:
        add_adapters(model, settings, seed)
    if settings.use_lora:
        freeze_untrained_towers(model)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if settings.torch_compile:
        compile_towers(model)
