"""A model's folder: transformers' files, sentence-transformers' files, our spec, and the heads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import vembed
from vembed.errors import CheckpointError
from vembed.model.backbones.pretrained import quiet
from vembed.model.base import BaseEmbeddingModel
from vembed.model.families.registry import family_named, hub_id
from vembed.model.files import HEADS_FILE, SPEC_FILE, ModelFolders, weights_folder
from vembed.model.processors.base import ItemProcessor
from vembed.model.sentence_folder import read_sentence_folder
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


@dataclass(frozen=True)
class ModelSource:
    """What a model was tuned from: one name, or the names of two towers."""

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
        text, image = (weights_folder(hub_id(one), with_code=settings.trust_remote_code) for one in names)
        return ModelFolders(None, _model_path(text), _model_path(image))
    root = weights_folder(hub_id(name), settings.revision, with_code=settings.trust_remote_code)
    subfolders = family_named(spec.family).subfolders
    path = root if subfolders else _model_path(root)
    folders = {tower: path / subfolders.get(tower, "") for tower in spec.towers}
    return ModelFolders(root, folders.get("text"), folders.get("vision"))


def load_heads(model: BaseEmbeddingModel, folders: ModelFolders) -> None:
    """Restore logit scale, bias and heads, if the folder is a checkpoint of ours. Raises CheckpointError."""
    if folders.root is None or not (folders.root / SPEC_FILE).is_file():
        return
    path = folders.root / HEADS_FILE
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or broken: {error}") from error
    model.load_heads_state(state, path)


def write_checkpoint(
    folder: Path, model: BaseEmbeddingModel, processor: ItemProcessor, *, base: ModelSource, extra: Mapping[str, Any]
) -> None:
    """Write everything that opening the model again needs. Adapters are merged into the written weights.

    `extra` (Any: JSON) is kept in vembed_config.json beside spec, base model and version. Raises CheckpointError when
    the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_backbones(folder, model)
        with quiet():
            subfolders = family_named(model.spec.family).subfolders
            processor.save(folder / subfolders.get("text", ""), folder / subfolders.get("vision", ""))
        save_file(model.heads_state(), folder / HEADS_FILE, metadata={"format": "pt"})
        content = {
            "version": vembed.__version__,
            "spec": model.spec.model_dump(mode="json"),
            "base_model": asdict(base),
        }
        _write_json(folder / SPEC_FILE, {**extra, **content})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be written: {error}") from error


def _write_backbones(folder: Path, model: BaseEmbeddingModel) -> None:
    for subfolder, backbone in model.backbones().items():
        with quiet():
            backbone.save_pretrained(folder / subfolder, state_dict=model.backbone_state(subfolder))
        for name, content in model.sentence_files(subfolder).items():
            _write_json(folder / subfolder / name, content)


def _model_path(folder: Path) -> Path:
    sentence = read_sentence_folder(folder)
    return folder / sentence.model_path if sentence else folder


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
