"""Export a checkpoint with its adapters merged, and with all files of its base model's folder."""

import shutil
from pathlib import Path

from vembed.errors import CheckpointError
from vembed.model.adapters.base_model import plain_folder, read_base
from vembed.model.checkpoint import ModelSource
from vembed.model.families.registry import hub_id
from vembed.model.folder.find import ADAPTER_CONFIG, BASE_FILE, SPEC_FILE, TRAINING_FILE, read_table, weights_folder
from vembed.model.folder.weight_names import rename_weights_like
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.utils.json_files import Json
from vembed.utils.sealed import sealed, unsealed

_WEIGHTS = "weights"
_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
_OURS = {ADAPTER_CONFIG, BASE_FILE, SPEC_FILE, Path(TRAINING_FILE).with_suffix(".json").name}


def merge_folder(name: str | Path, target: Path, settings: ModelSettings | None = None) -> VisualRetrievalModel:
    """Write the model of a folder or hub id with its adapters merged, and return it. settings: for loading it.

    Raises CheckpointError for adapters that were trained on 4-bit weights: merged into others they would embed
    differently.
    """
    settings = settings or ModelSettings()
    folder = weights_folder(hub_id(str(name)), settings)
    _refuse_quantized(folder)
    opened = VisualRetrievalModel.from_pretrained(str(name), settings)
    record = read_table(folder / SPEC_FILE) or {}
    base = ModelSource(**record["base_model"]) if "base_model" in record else opened.base
    model = VisualRetrievalModel(opened.model, opened.processor, base, opened.reason)
    model.save_pretrained(target, _facts_of_merged(record, folder / SPEC_FILE))
    for subfolder in model.model.backbones():
        plain = plain_folder(folder / subfolder, settings)
        rename_weights_like(plain, target / subfolder)
        _copy_other_files(plain, target / subfolder, settings)
    return model


def _facts_of_merged(record: Json, file: Path) -> Json:
    """What a run noted beside the model, without the checksum of its weights: the merged ones are others.

    Raises CheckpointError when it is not what was written, rather than give it a new seal.
    """
    facts = {key: value for key, value in record.items() if key not in ("version", "spec", "base_model")}
    if _WEIGHTS not in facts:
        return facts
    content = unsealed(facts, file)
    del content[_WEIGHTS]
    return sealed(content)


def _refuse_quantized(folder: Path) -> None:
    for file in sorted(folder.rglob(BASE_FILE)):
        base = read_base(file.parent)
        if base is not None and base.quantization is not None:
            raise CheckpointError(
                f"the adapter in {file.parent} was trained beside {base.quantization} weights; merged into whole ones"
                " it would embed differently. Use it as it is"
            )


def _copy_other_files(base: Path, target: Path, settings: ModelSettings) -> None:
    """Copy the base's other files, such as a chat template, which other tools may need."""
    patterns = (*_PATTERNS, "*.py") if settings.trust_remote_code else _PATTERNS
    for path in sorted(path for pattern in patterns for path in base.glob(pattern)):
        is_list_of_weights = path.name.endswith(".index.json")
        if path.name not in _OURS and not is_list_of_weights and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
