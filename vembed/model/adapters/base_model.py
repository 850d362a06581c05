"""What a saved adapter belongs to: the base's name, and a fingerprint of its weights. One small file in each folder.

    vembed_base.json    beside the adapters of a tower, or alone where a tower did not learn

A folder that peft wrote has no such file; its adapter_config.json names the base, which is then believed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vembed.errors import CheckpointError, ModelError
from vembed.model.families.registry import hub_id
from vembed.model.folder.find import ADAPTER_CONFIG, BASE_FILE, read_adapter_config, read_json, weights_folder
from vembed.model.folder.fingerprint import fingerprint
from vembed.model.folder.sentence_transformers import model_path
from vembed.model.settings import ModelSettings


@dataclass(frozen=True)
class AdapterBase:
    """Where the plain weights are found: a hub id (with revision) or folder, and the folder within.

    weights: their fingerprint, None when nobody noted it. quantization: what the adapter learned beside, if not the
    weights as they are.
    """

    model_name: str
    revision: str | None = None
    subfolder: str = ""
    weights: str | None = None
    quantization: str | None = None

    def place(self) -> str:
        """The name by which transformers and peft find the plain weights."""
        return str(Path(self.model_name) / self.subfolder) if self.subfolder else self.model_name


def read_base(folder: Path) -> AdapterBase | None:
    """The base that the adapter in a folder belongs to; None for a folder with weights of its own."""
    saved = read_json(folder / BASE_FILE)
    if saved is not None:
        try:
            return AdapterBase(**saved)
        except TypeError as error:
            raise CheckpointError(f"{folder / BASE_FILE} does not fit this version: {error}") from error
    config = None if (folder / "config.json").is_file() else read_adapter_config(folder)
    if config is None:
        return None
    name = config.get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} does not say which model the adapter belongs to")
    return AdapterBase(str(name), config.get("revision"))


def note_base(name: str, folder: Path, settings: ModelSettings, subfolder: str = "") -> AdapterBase:
    """The base for an adapter beside the weights in `folder`, which belong to the model of that name.

    A local folder is noted by its whole path, a hub model by the commit that was loaded.
    """
    weights = fingerprint(folder)
    if Path(name).expanduser().is_dir():
        return AdapterBase(str(folder.resolve()), weights=weights, quantization=settings.quantization)
    commits = [one.name for one in (folder, *folder.parents) if one.parent.name == "snapshots"]
    revision = commits[0] if commits else settings.revision
    return AdapterBase(hub_id(name), revision, subfolder, weights, settings.quantization)


def write_base(folder: Path, base: AdapterBase) -> None:
    """Write the file that `read_base` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BASE_FILE).write_text(json.dumps(asdict(base), indent=2) + "\n", encoding="utf-8")


def base_folder(folder: Path, base: AdapterBase, settings: ModelSettings) -> Path:
    """The folder of the base that the adapter in `folder` names.

    Raises CheckpointError when it is not there, or holds other weights than the adapter learned beside.
    """
    try:
        root = weights_folder(base.model_name, settings, base.revision)
        found = model_path(root / base.subfolder)
    except ModelError as error:
        raise CheckpointError(
            f"{folder} holds an adapter, and the model that it belongs to, {base.model_name!r}, is not there: {error}. "
            f"Put it back, or write where it lies now into {_where(folder)}"
        ) from error
    if base.weights is not None and fingerprint(found) != base.weights:
        raise CheckpointError(
            f"the adapter in {folder} belongs to another model than {found}: the weights there are not those that it"
            f" was trained with. Give {_where(folder)} the right one, or merge the adapter where its base still is"
        )
    return found


def plain_folder(folder: Path, settings: ModelSettings) -> Path:
    """The folder of plain weights under any number of adapters."""
    base = read_base(folder)
    return folder if base is None else plain_folder(base_folder(folder, base, settings), settings)


def _where(folder: Path) -> str:
    named = BASE_FILE if (folder / BASE_FILE).is_file() else ADAPTER_CONFIG
    key = "model_name" if named == BASE_FILE else "base_model_name_or_path"
    return f"{key} in {folder / named}"
