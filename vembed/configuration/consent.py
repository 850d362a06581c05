"""What a file cannot allow by itself: keys by which code of others runs, or files are read that nobody pointed at.

`vembed train my.yaml` follows what its file says. Every other command looks at something, a run's folder among them,
which somebody else may have written: there only the command line gives such consent.
"""

import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from vembed.configuration.keys import Key
from vembed.utils.untrusted import is_folder, printable

# Whether a file's consent counts: it is the caller's own; it does not, and is asked for; or the file is only shown,
# for which nothing of it is imported.
Reading = Literal["followed", "judged", "shown"]

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_MAX_NAMES = 4


def consent_keys(keys: Mapping[str, Key]) -> set[str]:
    """The names of the keys that need consent.

    >>> from vembed.configuration.sections import every_key
    >>> sorted(consent_keys(every_key()))
    ['allow_paths_outside_image_root', 'allow_pickled_weights', 'plugins', 'trust_remote_code']
    """
    return {name for name, key in keys.items() if key.needs_consent}


def is_module_name(name: object) -> bool:
    """True for what can be imported: names joined by points.

    >>> is_module_name("my.losses"), is_module_name("../losses"), is_module_name("")
    (True, False, False)
    """
    return isinstance(name, str) and _MODULE.fullmatch(name) is not None


def question(name: str, value: object, values: Mapping[str, object], folder: Path | None) -> str:
    """What a key of a file would allow, which files that are, and the option by which the caller allows it.

    values: of the file. folder: that it lies in.
    """
    if name == "plugins":
        modules = [str(one) for one in value] if isinstance(value, list) else [str(value)]
        option = shlex.quote(",".join(modules))
        return (
            f"only you can allow code to run: {_joined(_plugin_files(modules))}. Read it, and add --plugins {option}"
            " if you trust it; --plugins '[]' goes on without"
        )
    effects = {
        "trust_remote_code": ("code to run", "*.py", "code that comes with its model"),
        "allow_pickled_weights": ("pickles to be read", "*.bin", "pickled weights"),
    }
    what, pattern, otherwise = effects.get(name, ("pictures to be read from anywhere", "", "paths out of image_root"))
    files = (
        sorted(str(path) for place in _model_folders(values, folder) for path in place.glob(pattern)) if pattern else []
    )
    return (
        f"only you can allow {what}: {_joined(files) or otherwise}. Look at it, and add --{name} if you trust it;"
        f" --no-{name} goes on without"
    )


def _plugin_files(modules: Collection[str]) -> list[str]:
    """Where the modules would be imported from. Nothing is imported to find out."""
    files = []
    for module in modules:
        found = None
        if is_module_name(module):
            found = PathFinder.find_spec(module.split(".")[0], [*sys.path, str(Path.cwd())])
        files.append(module if found is None or found.origin is None else found.origin)
    return files


def _model_folders(values: Mapping[str, object], folder: Path | None) -> Iterator[Path]:
    """The local folders of models that a file names, and the model of the run whose folder it lies in."""
    for key in ("model_name", "text_model_name", "image_model_name", "teacher_model_name"):
        name = values.get(key)
        if isinstance(name, str) and is_folder(name):
            yield Path(name)
    if folder is not None and is_folder(str(folder / "final")):
        yield folder / "final"


def _joined(names: Collection[str]) -> str:
    shown = ", ".join(printable(name) for name in list(names)[:_MAX_NAMES])
    return f"{shown} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else shown
