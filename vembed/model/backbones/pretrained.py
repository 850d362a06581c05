"""Load a transformers model from a folder, with its adapters; missing or foreign weights are a ModelError."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from safetensors import SafetensorError

from vembed.errors import ModelError
from vembed.model.adapters.base_model import AdapterBase, base_folder, read_base
from vembed.model.adapters.files import read_adapters
from vembed.model.adapters.layers import merge_adapters
from vembed.model.backbones.weight_options import FOUR_BIT, check_attention, weight_options
from vembed.model.folder.find import ADAPTER_CONFIG, read_json
from vembed.model.settings import ModelSettings

Backbone = Any  # transformers is untyped here

_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, ImportError)


def load_backbone(
    folder: Path, settings: ModelSettings, *, needs_pooler: bool = False, loader: Any = transformers.AutoModel
) -> Backbone:  # Any: transformers is untyped here
    """The model in `folder`, by default in float32, in eval mode. Raises ModelError for weights that are missing or of
    another model, CheckpointError for an adapter that does not fit.

    A pooling layer without weights in the checkpoint is removed, unless needs_pooler. Adapters are merged, unless they
    are trained further. loader: the class whose `from_pretrained` is called.
    """
    base = read_base(folder)
    if base is None:
        return _load_plain(folder, settings, needs_pooler, loader)
    return _load_with_adapters(folder, base, settings, needs_pooler=needs_pooler, loader=loader)


def _load_with_adapters(
    folder: Path, base: AdapterBase, settings: ModelSettings, *, needs_pooler: bool, loader: Any
) -> Backbone:
    """The base model with the adapters of `folder`; adapters of the base itself are merged."""
    quantization = settings.quantization or base.quantization
    plain = settings.model_copy(update={"use_lora": False, "quantization": quantization})
    backbone = load_backbone(base_folder(folder, base, settings), plain, needs_pooler=needs_pooler, loader=loader)
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    continued = settings.use_lora and settings.adapter == "continue"
    if (folder / ADAPTER_CONFIG).is_file():
        read_adapters(folder, backbone, dropout=settings.lora_dropout if continued else 0.0)
        if settings.use_lora and not continued and quantization == FOUR_BIT:
            raise ModelError(
                f"adapter: merge: the adapter in {folder} cannot be merged into 4-bit weights; continue it"
            )
        if not continued and quantization != FOUR_BIT:
            merge_adapters(backbone)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return backbone.eval()


def _load_plain(folder: Path, settings: ModelSettings, needs_pooler: bool, loader: Any) -> Backbone:
    options = {"trust_remote_code": settings.trust_remote_code, "local_files_only": True}
    options |= _format_options(folder, settings) | weight_options(settings)
    try:
        with quiet():
            model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    except (*_LOAD_ERRORS, UnpicklingError, SafetensorError, EOFError, struct.error) as error:
        raise _load_error(folder, error, settings) from error
    missing = sorted(report["missing_keys"])
    pooler = [name for name in missing if name.startswith("pooler.")]
    if len(pooler) < len(missing) or (pooler and needs_pooler):
        raise ModelError(
            f"model folder {str(folder)!r} lacks {len(missing)} weights of {type(model).__name__}, "
            f"such as {missing[0]!r}"
        )
    if pooler:
        model.pooler = None
    check_attention(model, settings.attn_implementation)
    _freeze_unused_parameters(model, needs_pooler)
    return model.eval()


def _load_error(folder: Path, error: Exception, settings: ModelSettings) -> ModelError:
    """The error for the user when transformers could not load a folder."""
    start = f"model folder {str(folder)!r}"
    if isinstance(error, SafetensorError | EOFError | struct.error):
        return ModelError(
            f"{start} cannot be loaded: its weights are damaged or cut short ({error}); copy or download them again"
        )
    if isinstance(error, UnpicklingError):
        return ModelError(f"{start} holds a pickle of more than tensors; it was not run")
    if "trust_remote_code" in str(error) and not settings.trust_remote_code:
        return ModelError(
            f"{start} needs code of its own, which config.json's auto_map names; read that code, and set"
            " trust_remote_code: true if you trust it"
        )
    asked = settings.attn_implementation
    if asked is not None and "attention implementation" in str(error):
        return ModelError(f"attn_implementation {asked}: transformers has no such attention for this model")
    return ModelError(f"{start} cannot be loaded: {one_line(error)}")


def refuse_own_code(folder: Path, settings: ModelSettings) -> None:
    """Raise ModelError for a folder that needs remote code, unless trust_remote_code is set."""
    config = read_json(folder / "config.json") or {}
    known = config.get("model_type") in transformers.CONFIG_MAPPING
    if "auto_map" not in config or known or settings.trust_remote_code:
        return
    files = sorted({str(name).split(".")[0].split("--")[-1] + ".py" for name in _class_names(config["auto_map"])})
    raise ModelError(
        f"model folder {str(folder)!r} is opened by code that comes with it ({', '.join(files)}), which does not run"
        " unless you allow it: read it, and set trust_remote_code: true"
    )


def pretrained_processor(loader: Any, folder: Path, *, trust_remote_code: bool, kind: str) -> Any:
    """The tokenizer, image processor or processor that transformers' `loader` finds in a folder. Raises ModelError."""
    try:
        with quiet():
            return loader.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError) as error:
        raise ModelError(f"model folder {str(folder)!r} has no usable {kind}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """A library's error in one line: its type and the first 300 characters of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _format_options(folder: Path, settings: ModelSettings) -> dict[str, bool]:
    """Options of `from_pretrained` for safetensors, or for pickles where they are allowed. Raises ModelError."""
    if any(folder.glob("*.safetensors")):
        return {"use_safetensors": True}
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles and settings.allow_pickled_weights:
        return {"use_safetensors": False, "weights_only": True}
    if pickles:
        raise ModelError(
            f"model folder {str(folder)!r} holds pickled weights only ({pickles[0]}); a pickle can run code when it is"
            " opened. Set allow_pickled_weights: true, which reads tensors and runs nothing, or convert it to"
            " safetensors once: vembed export MODEL --merge --allow_pickled_weights --output FOLDER"
        )
    raise ModelError(f"model folder {str(folder)!r} holds no weights; expected model.safetensors (no pickles)")


def _freeze_unused_parameters(model: Backbone, needs_pooler: bool) -> None:
    """Freeze parameters that the embedding does not depend on, so that no trainable one is without a gradient."""
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token") or (name.startswith("pooler.") and not needs_pooler):
            parameter.requires_grad_(False)


def _class_names(auto_map: dict[str, Any]) -> Iterator[str]:  # Any: JSON
    """The classes of config.json's auto_map, as "file.Class"; a tokenizer has two, slow and fast."""
    for entry in auto_map.values():
        yield from (name for name in (entry if isinstance(entry, list) else [entry]) if name)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and loading reports; missing weights in them are checked here."""
    logging = transformers.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
