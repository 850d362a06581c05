"""The base model of a saved adapter: its name, and a fingerprint of its weights. One small file in each folder.

    vembed_base.json    beside the adapters of a tower, or alone where a tower did not learn

A folder that peft wrote has no such file; its adapter_config.json names the base, whose weights are not checked then.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath

from pydantic import TypeAdapter

from vembed.errors import CheckpointError, ModelError
from vembed.model.families.registry import hub_id
from vembed.model.folder.find import ADAPTER_CONFIG, BASE_FILE, Json, read_adapter_config, read_table, weights_folder
from vembed.model.folder.fingerprint import fingerprint
from vembed.model.folder.sentence_transformers import model_path
from vembed.model.settings import ModelSettings
from vembed.utils.untrusted import is_folder, library_errors


@dataclass(frozen=True)
class AdapterBase:
    """Where the base model's weights are: a hub id (with revision) or folder, and the subfolder within.

    weights: their fingerprint, None if unknown. quantization: of the base while the adapter was trained, None for none.
    """

    model_name: str
    revision: str | None = None
    subfolder: str = ""
    weights: str | None = None
    quantization: str | None = None

    def name_or_path(self) -> str:
        """The base as peft names it: `base_model_name_or_path`."""
        return str(Path(self.model_name) / self.subfolder) if self.subfolder else self.model_name


def read_base(folder: Path) -> AdapterBase | None:
    """The base model of the adapter in a folder; None for a folder with full weights. Raises CheckpointError."""
    try:
        saved = read_table(folder / BASE_FILE)
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    if saved is not None:
        return _base(folder / BASE_FILE, saved)
    config = None if (folder / "config.json").is_file() else read_adapter_config(folder)
    if config is None:
        return None
    name = config.get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} does not say which model the adapter belongs to")
    return _base(folder / ADAPTER_CONFIG, {"model_name": name, "revision": config.get("revision")})


def _base(path: Path, values: Json) -> AdapterBase:
    """The base that a file names. Raises CheckpointError for values of other types, or a folder above the model."""
    with library_errors(CheckpointError, f"{path} does not fit this version"):
        base = AdapterBase(**values)
        TypeAdapter(AdapterBase).validate_python(base, strict=True)
    inner = PureWindowsPath(base.subfolder)
    if inner.anchor or ".." in inner.parts:
        raise CheckpointError(f"{path} names the subfolder {base.subfolder!r}, which is none of the model")
    return base


def new_adapter_base(name: str, folder: Path, settings: ModelSettings, subfolder: str = "") -> AdapterBase:
    """The base of a new adapter on the weights in `folder`, which are those of the model `name`.

    A local folder is named by its absolute path, a hub model by its id and the commit that was loaded.
    """
    weights = fingerprint(folder)
    if is_folder(os.path.expanduser(name)):  # noqa: PTH111 (Path's raises for ~nobody)
        return AdapterBase(str(folder.resolve()), weights=weights, quantization=settings.quantization)
    commits = [one.name for one in (folder, *folder.parents) if one.parent.name == "snapshots"]
    revision = commits[0] if commits else settings.revision
    return AdapterBase(hub_id(name), revision, subfolder, weights, settings.quantization)


def write_base(folder: Path, base: AdapterBase) -> None:
    """Write the file that `read_base` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BASE_FILE).write_text(json.dumps(asdict(base), indent=2) + "\n", encoding="utf-8")


def base_folder(folder: Path, base: AdapterBase, settings: ModelSettings) -> Path:
    """The folder of the base model that the adapter in `folder` names.

    Raises CheckpointError when it is missing, or holds other weights than those that the adapter was trained on.
    """
    try:
        root = weights_folder(base.model_name, settings, base.revision)
        found = model_path(root / base.subfolder)
    except ModelError as error:
        raise CheckpointError(
            f"{folder} holds an adapter, and the model that it belongs to, {base.model_name!r}, is not there: {error}. "
            f"Put it back, or write where it lies now into {_base_key(folder)}"
        ) from error
    if base.weights is not None and fingerprint(found) != base.weights:
        raise CheckpointError(
            f"the adapter in {folder} belongs to another model than {found}: the weights there are not those that it"
            f" was trained with. Give {_base_key(folder)} the right one, or merge the adapter where its base still is"
        )
    return found


def plain_folder(folder: Path, settings: ModelSettings) -> Path:
    """The folder of the full weights under any number of adapters; `folder` itself if it holds such.

    Raises CheckpointError as `base_folder` does, and for adapters that lead in a circle.
    """
    seen = [folder.resolve()]
    while (base := read_base(folder)) is not None:
        folder = base_folder(folder, base, settings)
        if folder.resolve() in seen:
            raise CheckpointError(f"{folder} holds an adapter that belongs, in the end, to itself; name its base anew")
        seen.append(folder.resolve())
    return folder


def _base_key(folder: Path) -> str:
    named = BASE_FILE if (folder / BASE_FILE).is_file() else ADAPTER_CONFIG
    key = "model_name" if named == BASE_FILE else "base_model_name_or_path"
    return f"{key} in {folder / named}"
