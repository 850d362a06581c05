"""A checkpoint's folder: files of transformers and of sentence-transformers, the spec, and the heads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vembed.errors import CheckpointError
from vembed.model.adapters.base_model import AdapterBase, new_adapter_base, plain_folder, read_base, write_base
from vembed.model.adapters.files import load_adapters, modules_to_save, write_adapters
from vembed.model.adapters.layers import layers_with_adapters
from vembed.model.backbones.layers import WEIGHTS_FILE
from vembed.model.backbones.pretrained import quiet
from vembed.model.base import BaseEmbeddingModel
from vembed.model.families.registry import family_named, hub_id
from vembed.model.folder.find import HEADS_FILE, SPEC_FILE, ModelFolders, weights_folder
from vembed.model.folder.sentence_transformers import model_path, unopenable
from vembed.model.heads import heads_state, load_heads
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.utils.untrusted import library_errors
from vembed.version import __version__

_PROCESSOR_FILES = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class ModelSource:
    """The name (hub id or folder) of the model that was tuned, or those of its two towers."""

    model_name: str | None = None
    revision: str | None = None
    text_model_name: str | None = None
    image_model_name: str | None = None


def find_folders(name: str | None, settings: ModelSettings, spec: ModelSpec) -> ModelFolders:
    """The local folders of a model's towers, downloaded if need be. Raises ModelError."""
    if name is None:
        assert settings.text_model_name is not None
        assert settings.image_model_name is not None
        names = (settings.text_model_name, settings.image_model_name)
        text, image = (weights_folder(hub_id(one), settings) for one in names)
        return ModelFolders(None, model_path(text), model_path(image))
    root = weights_folder(hub_id(name), settings, settings.revision)
    subfolders = family_named(spec.family).subfolders
    path = root if subfolders else model_path(root)
    folders = {tower: path / subfolders.get(tower, "") for tower in spec.towers}
    return ModelFolders(root, folders.get("text"), folders.get("vision"))


def load_learned(model: BaseEmbeddingModel, folder: Path) -> None:
    """Load the adapters, layers and heads of a checkpoint without the other weights. Raises CheckpointError."""
    for subfolder, backbone in model.backbones().items():
        if any(True for _ in layers_with_adapters(backbone)):
            load_adapters(folder / subfolder, backbone)
    load_layer_states(model, folder)
    load_heads(model, folder)


@torch.no_grad()
def load_layer_states(model: BaseEmbeddingModel, folder: Path) -> None:
    """Load the weights of the layers that follow a tower's pooling. Raises CheckpointError."""
    for subfolder in model.backbones():
        for name, state in model.layer_states(subfolder).items():
            path = folder / subfolder / name / WEIGHTS_FILE
            with library_errors(CheckpointError, f"{path} is missing, broken or of another model"):
                saved = load_file(path)
                for key, tensor in state.items():
                    tensor.copy_(saved[key])


def processor_folders(folders: ModelFolders, settings: ModelSettings) -> ModelFolders:
    """Folders of tokenizer and image processor: those of the weights, or of an adapter's base if it comes without."""
    text, image = (_processor_folder(folder, settings) for folder in (folders.text, folders.image))
    return replace(folders, text=text, image=image)


def _processor_folder(folder: Path | None, settings: ModelSettings) -> Path | None:
    if folder is None or any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return folder
    return plain_folder(folder, settings)


def adapter_bases(
    model: BaseEmbeddingModel, source: ModelSource, folders: ModelFolders, settings: ModelSettings
) -> dict[str, AdapterBase]:
    """The base models of a loaded model's adapters, by subfolder of a checkpoint."""
    subfolders = family_named(model.spec.family).subfolders
    towers = {subfolders.get(tower, ""): tower for tower in model.spec.towers}
    names = {"text": source.text_model_name, "vision": source.image_model_name}
    bases = {}
    for subfolder in model.backbones():
        tower = towers[subfolder]
        folder = folders.text if tower == "text" else folders.image
        assert folder is not None
        own = read_base(folder)
        if own is not None and settings.adapter == "continue":
            bases[subfolder] = replace(own, quantization=settings.quantization or own.quantization)
        elif source.model_name is not None:
            bases[subfolder] = new_adapter_base(
                source.model_name, folder, settings, subfolder=subfolder if subfolders else ""
            )
        else:
            bases[subfolder] = new_adapter_base(str(names[tower]), folder, settings)
    return bases


def write_checkpoint(
    folder: Path,
    model: BaseEmbeddingModel,
    processor: ItemProcessor,
    *,
    base: ModelSource,
    adapter_bases: Mapping[str, AdapterBase] | None = None,
    extra: Mapping[str, Any],
) -> None:
    """Write a folder from which the model can be loaded: weights, with adapters merged; or adapters only.

    adapter_bases: the base models of the adapters, by subfolder; then only adapters are written. extra (Any: JSON):
    kept in vembed_config.json beside spec, base model and version. Raises CheckpointError if writing fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if adapter_bases is None:
            _write_backbones(folder, model)
        else:
            _write_adapters(folder, model, adapter_bases)
        _write_sentence_files(folder, model, processor)
        with quiet():
            subfolders = family_named(model.spec.family).subfolders
            processor.save(folder / subfolders.get("text", ""), folder / subfolders.get("vision", ""))
        save_file(heads_state(model), folder / HEADS_FILE, metadata={"format": "pt"})
        content = {
            "version": __version__,
            "spec": model.spec.model_dump(mode="json"),
            "base_model": asdict(base),
        }
        _write_json(folder / SPEC_FILE, {**extra, **content})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be written: {error}") from error


def _write_adapters(folder: Path, model: BaseEmbeddingModel, bases: Mapping[str, AdapterBase]) -> None:
    for subfolder, backbone in model.backbones().items():
        base = bases[subfolder]
        write_base(folder / subfolder, base)
        if any(True for _ in layers_with_adapters(backbone)):
            whole = list(modules_to_save(backbone, with_statistics=model.train_batch_norm))
            write_adapters(folder / subfolder, backbone, whole, base=base.name_or_path(), revision=base.revision)


def _write_backbones(folder: Path, model: BaseEmbeddingModel) -> None:
    for subfolder in model.backbones():
        with quiet():
            model.save_backbone(subfolder, folder / subfolder)


def _write_sentence_files(folder: Path, model: BaseEmbeddingModel, processor: ItemProcessor) -> None:
    for subfolder in model.backbones():
        files = model.sentence_files(subfolder)
        if not processor.is_read_alike_elsewhere():
            files = unopenable(files)
        for name, content in files.items():
            _write_json(folder / subfolder / name, content)
        for name, state in model.layer_states(subfolder).items():
            plain = {key: tensor.cpu().contiguous() for key, tensor in state.items()}
            save_file(plain, folder / subfolder / name / WEIGHTS_FILE, metadata={"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
