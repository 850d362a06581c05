"""Write the plain model of a checkpoint: adapters merged, and every file that its base's folder has."""

import shutil
from pathlib import Path

from vembed.errors import CheckpointError
from vembed.model.adapters.base_model import plain_folder, read_base
from vembed.model.checkpoint import ModelSource
from vembed.model.families.registry import hub_id
from vembed.model.folder.find import ADAPTER_CONFIG, BASE_FILE, SPEC_FILE, TRAINING_FILE, read_json, weights_folder
from vembed.model.folder.weight_names import rename_weights_like
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings

_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
_OURS = {ADAPTER_CONFIG, BASE_FILE, SPEC_FILE, Path(TRAINING_FILE).with_suffix(".json").name}


def merge_folder(name: str | Path, target: Path, settings: ModelSettings | None = None) -> VisualRetrievalModel:
    """Write the model of a folder or hub id with its adapters merged into plain weights; gives that model.

    Raises CheckpointError for adapters that were trained beside 4-bit weights: merged into others they would embed
    differently. settings: those for opening it.
    """
    settings = settings or ModelSettings()
    folder = weights_folder(hub_id(str(name)), settings)
    _refuse_quantized(folder)
    opened = VisualRetrievalModel.from_pretrained(str(name), settings)
    record = read_json(folder / SPEC_FILE) or {}
    base = ModelSource(**record["base_model"]) if "base_model" in record else opened.base
    model = VisualRetrievalModel(opened.model, opened.processor, base, opened.reason)
    extra = {key: value for key, value in record.items() if key not in ("version", "spec", "base_model")}
    model.save_pretrained(target, extra)
    for subfolder in model.model.backbones():
        plain = plain_folder(folder / subfolder, settings)
        rename_weights_like(plain, target / subfolder)
        _copy_companions(plain, target / subfolder, settings)
    return model


def _refuse_quantized(folder: Path) -> None:
    for file in sorted(folder.rglob(BASE_FILE)):
        base = read_base(file.parent)
        if base is not None and base.quantization is not None:
            raise CheckpointError(
                f"the adapter in {file.parent} was trained beside {base.quantization} weights; merged into whole ones"
                " it would embed differently. Use it as it is"
            )


def _copy_companions(base: Path, target: Path, settings: ModelSettings) -> None:
    """The base's files that opening the model did not need, and that other tools may (a chat template, say)."""
    patterns = (*_PATTERNS, "*.py") if settings.trust_remote_code else _PATTERNS
    for path in sorted(path for pattern in patterns for path in base.glob(pattern)):
        is_list_of_weights = path.name.endswith(".index.json")
        if path.name not in _OURS and not is_list_of_weights and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
