"""Device, autocast and gradient scaler, which Accelerate chooses and makes; it does nothing else here."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from vembed.errors import ConfigError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.learning.dtypes import has_low_precision_weights, keep_trainable_in_float32
from vembed.model.learning.lora import has_adapters
from vembed.model.settings import ModelSettings
from vembed.training.settings import TrainingSettings


@dataclass(frozen=True)
class Precision:
    """The device and the autocast dtype of a run. `scaler`: with fp16 only, in which small gradients underflow."""

    device: torch.device
    mixed_precision: str
    autocast: Callable[[], AbstractContextManager[None]]
    scaler: torch.amp.GradScaler | None


def choose_precision(settings: TrainingSettings) -> Precision:
    """The device and precision that the settings ask for. Raises ConfigError for what this machine lacks."""
    _check_device(settings.device)
    AcceleratorState._reset_state(reset_partial_state=True)  # else a second run in this process keeps the first's
    dtype = settings.mixed_precision
    if dtype == "auto":
        dtype = "bf16" if settings.device != "cpu" and _cuda_has_bf16() else "no"
    if dtype == "fp16" and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("mixed_precision: fp16 needs a CUDA device; use bf16, or no")
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=dtype)
    return Precision(accelerator.device, dtype, accelerator.autocast, accelerator.scaler)


def cast_trainable_to_float32(model: BaseEmbeddingModel, settings: ModelSettings, precision: Precision) -> None:
    """Cast the trainable weights to float32, whatever autocast computes in; frozen ones keep the dtype they have.

    An update is often smaller than bfloat16 can resolve at the size of the weight, and would be rounded away. Raises
    ConfigError when `torch_dtype` or `quantization` asks for weights that cannot be trained.
    """
    trained = [name for name in model.spec.towers if name not in model.freezing.towers]
    quantized = any(not p.is_floating_point() for name in trained for p in model.towers()[name].parameters())
    if quantized and not has_adapters(model):
        raise ConfigError("quantization: weights of 4 bits cannot learn; set use_lora: true, or freeze the towers")
    keep_trainable_in_float32(model)
    if settings.torch_dtype in ("bfloat16", "float16") and not any(
        map(has_low_precision_weights, model.backbones().values())
    ):
        raise ConfigError(
            f"torch_dtype: {settings.torch_dtype} would have no effect, since what learns is held in float32, with all"
            " that it runs through; set use_lora, or freeze a tower apart, or mixed_precision: bf16 to compute in less"
        )
    if settings.torch_dtype == "float16" and has_adapters(model) and precision.scaler is None:
        raise ConfigError(
            "torch_dtype: gradients that pass through float16 weights vanish unless they are scaled; set torch_dtype:"
            " bfloat16, or mixed_precision: fp16 (CUDA)"
        )


def _cuda_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _check_device(device: str) -> None:
    missing = (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(f"device: {device} is not available to torch on this machine; use auto or cpu")
