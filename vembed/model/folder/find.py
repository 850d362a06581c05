"""Find a model's files: a local folder, or a hub repository in the local cache or downloaded. Imports no torch."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.errors import CheckpointError, ModelError
from vembed.model.settings import ModelSettings
from vembed.utils import json_files
from vembed.utils.untrusted import is_folder, is_there

Json = json_files.Json
JsonFiles = dict[str, Any]  # path inside the folder -> JSON

SPEC_FILE = "vembed_config.json"
HEADS_FILE = "vembed_heads.safetensors"
STANFORD_FILE = "artifact.metadata"  # in ColBERT checkpoints of stanford-futuredata
TRAINING_FILE = "training_state.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BASE_FILE = "vembed_base.json"

_CONFIG_PATTERNS = ["*.json", STANFORD_FILE]
_WEIGHT_PATTERNS = ["*.json", STANFORD_FILE, "*.safetensors", "*.txt", "*.model", "*.jinja"]
_MAX_JSON_BYTES = 2**26
_TEXT_ENDINGS = {".json", ".jinja", ".model", ".txt"}
_MAX_TEXT_BYTES = 2**28
_OTHER_FORMATS = ["onnx/*", "openvino/*", "flax/*", "coreml/*", "original/*"]


@dataclass(frozen=True)
class ModelFolders:
    """Folders of the text and of the image tower (equal for one model); root: of the whole checkpoint, None for two."""

    root: Path | None
    text: Path | None
    image: Path | None


def config_folder(name: str, revision: str | None = None) -> Path:
    """A folder with the model's JSON files; weights of a hub model are not downloaded. Raises ModelError."""
    return _folder(name, revision, _CONFIG_PATTERNS)


def weights_folder(name: str, settings: ModelSettings, revision: str | None = None) -> Path:
    """A folder with all the model's files. Raises ModelError when the name is neither a folder nor a reachable id.

    With trust_remote_code its .py files too, and those of other repositories that auto_map names (as GTE's does); with
    allow_pickled_weights its .bin files.
    """
    code, pickles = ["*.py"] * settings.trust_remote_code, ["*.bin"] * settings.allow_pickled_weights
    folder = _folder(name, revision, [*_WEIGHT_PATTERNS, *code, *pickles])
    for repository in _code_repositories(folder) if code else []:
        _snapshot(repository, None, code)
    return folder


def _code_repositories(folder: Path) -> list[str]:
    """Other repositories with a model's remote code: auto_map names a class there as "owner/name--module.Class"."""
    named = (read_table(folder / "config.json") or {}).get("auto_map") or {}
    listed = named.values() if isinstance(named, dict) else ()
    values = [one for value in listed for one in (value if isinstance(value, list) else [value])]
    return sorted({str(one).split("--")[0] for one in values if one is not None and "--" in str(one)})


def read_adapter_config(folder: Path) -> dict[str, Any] | None:  # Any: JSON
    """adapter_config.json, None if there is none. Raises CheckpointError if it is broken, or no JSON object."""
    try:
        return read_table(folder / ADAPTER_CONFIG)
    except ModelError as error:
        raise CheckpointError(str(error)) from error


def read_json(path: Path) -> Any | None:  # Any: JSON
    """The content of a JSON file, None when it does not exist. Raises ModelError when it is broken."""
    return json_files.read_json(path, ModelError, max_bytes=_MAX_JSON_BYTES)


def read_table(path: Path) -> Json | None:
    """The table of settings in a JSON file, None when it does not exist. Raises ModelError for anything else."""
    return json_files.read_json_object(path, ModelError, max_bytes=_MAX_JSON_BYTES)


def _folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    folder = os.path.expanduser(name)  # noqa: PTH111 (Path's raises for ~nobody)
    if is_folder(folder):
        _refuse_irregular_files(Path(folder))
        return Path(folder)
    if is_there(folder):
        raise ModelError(f"model {name!r} is a file; give the folder that holds it")
    if _looks_like_path(name):
        raise ModelError(f"there is no model folder {name!r}")
    return _snapshot(name, revision, patterns)


def _refuse_irregular_files(folder: Path) -> None:
    """Raise ModelError for a pipe or a device in a folder, which a library would wait for, and texts of gigabytes."""
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        try:
            status = path.stat()
        except OSError:  # a link to nothing, which is as good as missing
            continue
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path} is not a regular file; a model's folder holds files and folders")
        if path.suffix in _TEXT_ENDINGS and status.st_size > _MAX_TEXT_BYTES:
            raise ModelError(f"{path} has {status.st_size:,} bytes, more than any tokenizer or config")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name.strip()


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow, and only hub models need it)
    from huggingface_hub.errors import (  # noqa: PLC0415 (as above)
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"model {repository!r}{at} is neither a local folder nor a Hugging Face model that can be reached "
            f"from here ({type(error).__name__}). Check the name, your network, or `hf auth login`; "
            "offline, give a local folder"
        ) from error
    return Path(folder)
