"""Load a transformers model from a folder, with its adapters; missing or foreign weights are a ModelError."""

import logging
import re
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from vembed.errors import ModelError
from vembed.model.adapters.base_model import AdapterBase, base_folder, plain_folder, read_base
from vembed.model.adapters.files import read_adapters
from vembed.model.adapters.layers import merge_adapters
from vembed.model.backbones.weight_options import FOUR_BIT, check_attention, weight_options
from vembed.model.folder.damage import PROCESSOR_FILES, WEIGHT_FILES, with_files
from vembed.model.folder.find import ADAPTER_CONFIG, Json, read_table
from vembed.model.folder.foreign import refuse_foreign_sources
from vembed.model.folder.tensors import check_index, check_layers, num_values
from vembed.model.settings import ModelSettings
from vembed.utils.untrusted import library_errors

Backbone = Any  # transformers is untyped here

_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"\.\d+\.")
_PACKED = 10  # quantised weights hold up to eight numbers in one
_SPARE = 50_000_000  # numbers that may be missing, of poolers and heads


def load_backbone(
    folder: Path, settings: ModelSettings, *, needs_pooler: bool = False, loader: Any = transformers.AutoModel
) -> Backbone:  # Any: transformers is untyped here
    """The model in `folder`, by default in float32, in eval mode. Raises ModelError for weights that are missing or of
    another model, CheckpointError for an adapter that does not fit.

    A pooling layer without weights in the checkpoint is removed, unless needs_pooler. Adapters are merged, unless they
    are trained further. loader: the class whose `from_pretrained` is called.
    """
    plain_folder(folder, settings)  # adapters that lead in a circle are refused
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
    config = read_table(folder / "config.json") or {}
    refuse_foreign_sources(folder, config)
    options = {"trust_remote_code": settings.trust_remote_code, "local_files_only": True}
    options |= _format_options(folder, settings) | weight_options(settings)
    try:
        with library_errors(ModelError, f"model folder {str(folder)!r} cannot be loaded"), quiet():
            _check_size(folder, config, settings, loader)
            model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    except ModelError as error:
        raise _explained(folder, error, settings) from error
    _warn_of_unused_layers(folder, model, report["unexpected_keys"])
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


def _check_size(folder: Path, config: Json, settings: ModelSettings, loader: Any) -> None:
    """Raise ModelError for a config.json of a much larger network than the weights, before memory is taken for it."""
    if not any(folder.glob("*.safetensors")) or (settings.trust_remote_code and "auto_map" in config):
        return
    check_index(folder)
    check_layers(folder, config)
    no_code = {"trust_remote_code": False}  # unless told, transformers asks on the terminal
    described = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **no_code)
    with torch.device("meta"):
        is_auto = hasattr(loader, "from_config")
        network = loader.from_config(described, **no_code) if is_auto else loader(described)
    num_described, num_held = sum(one.numel() for one in network.parameters()), num_values(folder)[1]
    if num_described > _PACKED * num_held + _SPARE:
        raise ModelError(
            f"{folder / 'config.json'} describes a network of {num_described:,} numbers, and its weights have"
            f" {num_held:,}; they are of different models"
        )


def _warn_of_unused_layers(folder: Path, model: Backbone, unexpected: Collection[str]) -> None:
    """Warn of weights of further layers than the network has: config.json describes fewer than there are."""
    built = {_NUMBER.sub(".#.", name) for name, _ in model.named_parameters()}
    unused = sorted(name for name in unexpected if _NUMBER.search(name) and _NUMBER.sub(".#.", name) in built)
    if unused:
        _log.warning(
            "%s describes a network of fewer layers than its weights: %d tensors are not used, such as %s",
            folder / "config.json",
            len(unused),
            unused[0],
        )


def _explained(folder: Path, error: ModelError, settings: ModelSettings) -> ModelError:
    """The error for the user when a folder could not be loaded: what to do about it, or which file it is about."""
    start, cause = f"model folder {str(folder)!r}", error.__cause__
    if isinstance(cause, SafetensorError | EOFError | struct.error):
        broken = (
            f"{start} cannot be loaded: its weights are damaged or cut short ({cause}); copy or download them again"
        )
        return ModelError(with_files(broken, folder, WEIGHT_FILES))
    if isinstance(cause, UnpicklingError):
        return ModelError(f"{start} holds a pickle of more than tensors; it was not run")
    if _asks_for_code(cause) and not settings.trust_remote_code:
        return _needs_code(folder, "config.json")
    asked = settings.attn_implementation
    if asked is not None and "attention implementation" in str(error):
        return ModelError(f"attn_implementation {asked}: transformers has no such attention for this model")
    return error if cause is None else ModelError(with_files(str(error), folder, WEIGHT_FILES))


def _asks_for_code(cause: BaseException | None) -> bool:
    """True for transformers' error about code that comes with a folder."""
    return "trust_remote_code" in str(cause)


def _needs_code(folder: Path, file: str) -> ModelError:
    """The error for a folder that opens with code of its own only."""
    files = ", ".join(sorted(path.name for path in folder.glob("*.py"))) or "in another repository"
    return ModelError(
        f"model folder {str(folder)!r} needs code of its own ({files}), which the auto_map of {file} names; read that"
        " code, and set trust_remote_code: true (--trust_remote_code) if you trust it"
    )


def refuse_own_code(folder: Path, settings: ModelSettings) -> None:
    """Raise ModelError for a folder that needs remote code, unless trust_remote_code is set."""
    config = read_table(folder / "config.json") or {}
    known = config.get("model_type") in transformers.CONFIG_MAPPING
    if "auto_map" not in config or known or settings.trust_remote_code:
        return
    files = sorted({str(name).split(".")[0].split("--")[-1] + ".py" for name in _class_names(config["auto_map"])})
    raise ModelError(
        f"model folder {str(folder)!r} is opened by code that comes with it ({', '.join(files)}), which does not run"
        " unless you allow it: read it, and set trust_remote_code: true (--trust_remote_code)"
    )


def pretrained_processor(loader: Any, folder: Path, *, trust_remote_code: bool, kind: str) -> Any:
    """The tokenizer, image processor or processor that transformers' `loader` finds in a folder. Raises ModelError."""
    try:
        with library_errors(ModelError, f"model folder {str(folder)!r} has no usable {kind}"), quiet():
            return loader.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except ModelError as error:
        if _asks_for_code(error.__cause__) and not trust_remote_code:
            raise _needs_code(folder, "its tokenizer or processor") from error
        raise ModelError(with_files(str(error), folder, PROCESSOR_FILES)) from error


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
            " opened. Set allow_pickled_weights: true (--allow_pickled_weights), which reads tensors and runs nothing,"
            " or convert it to safetensors once: vembed export MODEL --merge --allow_pickled_weights --output FOLDER"
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
    theirs = transformers.logging
    verbosity, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bar:
            theirs.enable_progress_bar()
