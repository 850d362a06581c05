"""The YAML of a resolved config: every key in force under its section, with its origin as a comment."""

from collections.abc import Callable, Mapping

from vembed.configuration.yaml_text import dump_value
from vembed.training.run.folder import RESOLVED
from vembed.utils.untrusted import in_one_line
from vembed.version import __version__


def resolved_yaml(sections: Mapping[str, Mapping[str, object]], origin: Callable[[str], str]) -> str:
    """A text that loads as an equal config. sections: name -> key -> value, without keys that have no effect."""
    lines = [f"{RESOLVED} {__version__}: every key in force, and where its value comes from."]
    for name, values in sections.items():
        keys = [f"{key}: {dump_value(value)}  # {in_one_line(origin(key))}" for key, value in values.items()]
        lines += ["", f"# {name}", *keys] if keys else []
    return "\n".join(lines) + "\n"
