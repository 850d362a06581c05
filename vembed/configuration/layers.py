"""The layers that values come from: a YAML file, a command line or a call, and a preset; each keeps its origin."""

import importlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vembed.configuration.arguments import Arguments, parse_argument, split_arguments
from vembed.configuration.consent import Reading, consent_keys, is_module_name, question
from vembed.configuration.keys import Key, as_plain_value, format_value
from vembed.configuration.sections import every_key
from vembed.configuration.yaml_text import Location, YamlMapping, parse_value, read_yaml
from vembed.errors import ConfigError, UsageError
from vembed.registry import nearest_names
from vembed.utils.untrusted import library_errors

PRESETS = Path(__file__).parents[1] / "configs"
WITH_LORA = "with_lora"
Overrides = Mapping[str, object] | Sequence[str]


@dataclass(frozen=True)
class Setting:
    """A value and who set it."""

    value: object
    origin: str
    document: YamlMapping | None = field(default=None, repr=False)

    def origin_at(self, location: Location) -> str:
        """The origin of the part of the value at `location`, which begins with the key: `my.yaml:3`."""
        return self.document.origin(location) if self.document else self.origin

    @property
    def folder(self) -> Path | None:
        """The folder of the file that sets it."""
        return Path(self.document.name).parent if self.document is not None else None

    @property
    def allows(self) -> bool:
        """True if it is set to anything but false, null or an empty list."""
        return self.on and self.value not in ([], ())

    @property
    def on(self) -> bool:
        """True if it switches something on, as null and false do not."""
        return self.value is not None and self.value is not False


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it was set, the key and the part of its value, and what would be right."""

    origin: str
    location: Location
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin, dotted(self.location), self.text) if part)


def dotted(location: Location) -> str:
    """A place in a value as people write it.

    >>> dotted(("data_path", 0, "weight"))
    'data_path[0].weight'
    """
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def user_settings(
    path: str | Path | None, overrides: Overrides, origin: str, reading: Reading = "followed"
) -> dict[str, Setting]:
    """The user's settings: the YAML file's values, and over them the overrides. Imports the plugins that they name.

    reading: a file that is judged may allow nothing, one that is shown has nothing imported; the overrides may.
    Raises ConfigError for a file that is no YAML mapping and for a plugin that fails; UsageError for stray words.
    """
    document = YamlMapping({}) if path is None else read_yaml(path)
    settings = {key: Setting(value, document.origin((key,)), document) for key, value in document.values.items()}
    if isinstance(overrides, Mapping):
        with library_errors(ConfigError, f"{origin}: cannot be read"):
            given = {str(key): Setting(as_plain_value(value), origin) for key, value in overrides.items()}
        _prepare(settings, given, reading)
        return {**settings, **given}
    texts = _texts(split_arguments(overrides, flags_of(every_key().values())))
    _prepare(settings, _read_texts(texts, origin), reading)
    return {**settings, **_read_texts(texts, origin)}


def overridden(overrides: Overrides, names: Collection[str]) -> Overrides:
    """The overrides of these keys alone."""
    if isinstance(overrides, Mapping):
        return {key: value for key, value in overrides.items() if key in names}
    arguments = split_arguments(overrides, flags_of(every_key().values()))
    kept = tuple((key, text) for key, text in arguments.settings if key in names)
    return Arguments((), kept).words()


def _prepare(settings: Mapping[str, Setting], given: Mapping[str, Setting], reading: Reading) -> None:
    """Import the plugins, as far as a file may name any. Raises ConfigError for what only the caller may allow."""
    if reading == "judged":
        values = {key: setting.value for key, setting in settings.items()}
        asked = [key for key in settings if key in consent_keys(every_key()) - given.keys() and settings[key].allows]
        problems = [
            str(Problem(settings[key].origin, (key,), question(key, settings[key].value, values, settings[key].folder)))
            for key in asked
        ]
        if problems:
            raise ConfigError("\n".join(problems))
    import_plugins({**settings, **given} if reading == "followed" else given)


def import_plugins(settings: Mapping[str, Setting]) -> None:
    """Import the modules under `plugins`; they are looked for in the current directory too. Raises ConfigError."""
    setting = settings.get("plugins")
    if setting is None or not isinstance(setting.value, list):
        return
    for number, name in enumerate(setting.value):
        origin = setting.origin_at(("plugins", number))
        if not is_module_name(name):
            raise ConfigError(f"{origin}: plugins: expected names of modules; got {format_value(name)}")
        try:
            _import_from_here(name)
        except ImportError as error:
            raise ConfigError(f"{origin}: plugins: {name} cannot be imported: {error}") from error


def _import_from_here(name: str) -> None:
    """Import a module, which may lie in the current folder.

    That stays on the path only if a plugin came from it: what else lies there is nobody's choice.
    """
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    module = None
    try:
        module = importlib.import_module(name)
    finally:
        file = getattr(module, "__file__", None)
        if added and (file is None or not Path(file).is_relative_to(folder)):
            sys.path.remove(folder)


def flags_of(keys: Iterable[Key]) -> set[str]:
    """The names of the keys that are true or false."""
    return {key.name for key in keys if key.is_flag}


@dataclass(frozen=True)
class Preset:
    """Values for a family of models. lora: those that hold in place of `values` when adapters are trained."""

    name: str
    values: Mapping[str, object]
    lora: Mapping[str, object]

    def settings(self, *, use_lora: bool, detected: bool) -> dict[str, Setting]:
        """Its values with their origins: `preset clip (detected, LoRA)`."""
        notes = ["detected"] if detected else []
        origin = f"preset {self.name}{_bracketed(notes)}"
        settings = {key: Setting(as_plain_value(value), origin) for key, value in self.values.items()}
        if use_lora:
            origin = f"preset {self.name}{_bracketed([*notes, 'LoRA'])}"
            settings |= {key: Setting(as_plain_value(value), origin) for key, value in self.lora.items()}
        return settings


def preset_names() -> list[str]:
    """The presets that the package holds."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "defaults")


def read_preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError with the nearest name."""
    if name not in preset_names():
        near = nearest_names(name, preset_names())
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no preset {name!r}; {hint}known: {', '.join(preset_names())}")
    values = dict(read_yaml(PRESETS / f"{name}.yaml").values)
    lora = values.pop(WITH_LORA, {})
    assert isinstance(lora, Mapping), f"{WITH_LORA} of preset {name} is no mapping"
    return Preset(name, values, lora)


def _texts(arguments: Arguments) -> dict[str, str | None]:
    if arguments.positionals:
        raise UsageError(
            f"unexpected argument {arguments.positionals[0]!r}; settings are written --key value or key=value"
            " (in quotes where the value has spaces)"
        )
    names = [key for key, _ in arguments.settings]
    if twice := sorted({key for key in names if names.count(key) > 1}):
        raise UsageError(f"{', '.join(twice)} set twice on the command line; keep one")
    return dict(arguments.settings)


def _read_texts(texts: Mapping[str, str | None], origin: str) -> dict[str, Setting]:
    keys = every_key()
    return {name: Setting(_read(keys.get(name), text), origin) for name, text in texts.items()}


def _read(key: Key | None, text: str | None) -> object:
    if key is None:
        return None if text is None else parse_value(text)
    if text is None and not key.is_flag:
        raise UsageError(f"{key.name} needs a value ({key.expected}): --{key.name} VALUE")
    return parse_argument(key, text)


def _bracketed(notes: Sequence[str]) -> str:
    return f" ({', '.join(notes)})" if notes else ""
