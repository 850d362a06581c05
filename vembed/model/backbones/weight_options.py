"""Options of `from_pretrained` for dtype, quantisation and attention; refused where this machine lacks support."""

import importlib.util
from typing import Any

import torch

from vembed.errors import ModelError
from vembed.model.settings import ModelSettings

FOUR_BIT = "4bit"
_FLASH = "flash_attention_2"
_DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


def weight_options(settings: ModelSettings) -> dict[str, Any]:  # Any: transformers' own types
    """transformers' arguments for dtype, quantisation and attention. Raises ModelError."""
    options: dict[str, Any] = {"dtype": _DTYPES[settings.torch_dtype]}
    if settings.quantization == FOUR_BIT:
        options |= _four_bit_options()
    if settings.attn_implementation is not None:
        _refuse_missing_flash(settings)
        options["attn_implementation"] = settings.attn_implementation
    return options


def check_attention(model: Any, wanted: str | None) -> None:
    """Raise ModelError if the model, or a module of it, uses another attention implementation than was set."""
    if wanted is None:
        return
    kind = type(model).__name__
    own_code = not model._supports_sdpa and not model._supports_flash_attn
    if own_code or (model.config.model_type == "timm_wrapper" and wanted != "sdpa"):
        raise ModelError(f"attn_implementation {wanted}: {kind} computes attention by code of its own; take it out")
    for part in model.modules():
        config = getattr(part, "config", None)
        found = getattr(config, "_attn_implementation", wanted)
        if found != wanted:
            raise ModelError(f"attn_implementation {wanted}: {type(part).__name__} in {kind} uses {found} all the same")


def _four_bit_options() -> dict[str, Any]:
    import transformers  # noqa: PLC0415 (its quantisation part is slow to import)

    if not torch.cuda.is_available():
        raise ModelError(
            "quantization: 4bit needs a CUDA device, and torch sees none; take it out (an adapter that was trained"
            " beside 4-bit weights opens with quantization: none, and embeds a little differently)"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantization: 4bit needs bitsandbytes: pip install 'vembed-factory[quantization]'")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _refuse_missing_flash(settings: ModelSettings) -> None:
    if settings.attn_implementation != _FLASH:
        return
    if importlib.util.find_spec("flash_attn") is None:
        raise ModelError(f"attn_implementation {_FLASH} needs the package flash-attn, which is not installed; use sdpa")
    if not torch.cuda.is_available():
        raise ModelError(f"attn_implementation {_FLASH} needs a CUDA device, and torch sees none; use sdpa")
    if settings.torch_dtype == "float32":
        raise ModelError(f"attn_implementation {_FLASH} computes in bfloat16 or float16; set torch_dtype, or use sdpa")
