"""Load a transformers model from a folder: safetensors only, complete, float32, and quietly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from vembed.errors import ModelError

Backbone = Any  # transformers is untyped here


def load_backbone(folder: Path, *, trust_remote_code: bool, needs_pooler: bool = False) -> Backbone:
    """The model in `folder` in float32 and eval mode. Raises ModelError when it has no, foreign or missing weights.

    A pooling layer that the checkpoint has no weights for is left out, unless it is needed.
    """
    _refuse_without_weights(folder)
    options = {"trust_remote_code": trust_remote_code, "use_safetensors": True, "local_files_only": True}
    try:
        with quiet():
            model, report = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(f"model folder {str(folder)!r} cannot be loaded: {first_lines(error)}") from error
    missing = sorted(report["missing_keys"])
    pooler = [name for name in missing if name.startswith("pooler.")]
    if len(pooler) < len(missing) or (pooler and needs_pooler):
        raise ModelError(
            f"model folder {str(folder)!r} lacks {len(missing)} weights of {type(model).__name__}, "
            f"such as {missing[0]!r}"
        )
    if pooler:
        model.pooler = None
    _freeze_unused(model, needs_pooler)
    return model.eval()


def pretrained_processor(loader: Any, folder: Path, *, trust_remote_code: bool, kind: str) -> Any:
    """What transformers' `loader` (AutoTokenizer, AutoImageProcessor) finds in the folder, or ModelError."""
    try:
        with quiet():
            return loader.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError) as error:
        raise ModelError(f"model folder {str(folder)!r} has no usable {kind}: {first_lines(error)}") from error


def first_lines(error: Exception) -> str:
    """The beginning of a library's message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _refuse_without_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"model folder {str(folder)!r} holds pickled weights only ({pickles[0]}); a pickle can run code when it is "
            "opened, so convert it to safetensors first"
        )
    raise ModelError(f"model folder {str(folder)!r} holds no weights; expected model.safetensors (no pickles)")


def _freeze_unused(model: Backbone, needs_pooler: bool) -> None:
    """Parameters that take no part in the embedding do not learn, so that their gradient is never missing."""
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token") or (name.startswith("pooler.") and not needs_pooler):
            parameter.requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and loading reports; what matters in them is checked here."""
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
