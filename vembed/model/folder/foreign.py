"""What a model's config.json may not ask for: files, downloads and code of others, which no setting here allows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vembed.errors import ModelError
from vembed.model.folder.find import Json

# timm.create_model would read other files for these, or download them.
_TIMM_SOURCES = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def refuse_foreign_sources(folder: Path, config: Json) -> None:
    """Raise ModelError for a config.json by which libraries would fetch code or weights from elsewhere."""
    path = folder / "config.json"
    for name, value in _texts(config):
        if name in _KERNEL_KEYS and "/" in value:
            raise ModelError(f"{path} asks for {name}: {value}, code from a hub, which is not run; take it out")
    if config.get("model_type", "timm_wrapper") != "timm_wrapper" or "architecture" not in config:
        return
    architecture, arguments = config["architecture"], config.get("model_args") or {}
    if not isinstance(architecture, str) or not architecture.replace(".", "_").isidentifier():
        raise ModelError(f"{path} names the architecture {architecture!r}; expected a name that timm has")
    asked = sorted(set(arguments) & set(_TIMM_SOURCES)) if isinstance(arguments, dict) else ["no table"]
    if asked:
        raise ModelError(f"{path}: model_args has {', '.join(asked)}, which would read other files; take it out")


def _texts(value: Any) -> Iterator[tuple[str, str]]:  # Any: JSON
    """The texts in a config, at any depth, with their keys."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(entry, str):
                yield str(key), entry
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
