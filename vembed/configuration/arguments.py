"""The words of a command line, split into positional ones and settings."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vembed.configuration.keys import Key
from vembed.configuration.yaml_text import parse_value
from vembed.errors import UsageError

_ASSIGNMENT = re.compile(r"^(?:--)?(?P<key>[A-Za-z][\w-]*)=(?P<text>.*)$", re.DOTALL)
_OPTION = re.compile(r"^--(?P<key>[A-Za-z][\w-]*)$")
_BOOLS = ("true", "false")


@dataclass(frozen=True)
class Arguments:
    """Positional words, and settings as (key, text); an option that came without a value has None for its text."""

    positionals: tuple[str, ...]
    settings: tuple[tuple[str, str | None], ...]

    def last(self, key: str) -> str | None:
        """The text that `key` is set to, or None if it is not set."""
        return dict(self.settings).get(key)

    def words(self, *, without: str = "") -> list[str]:
        """The settings as words again, those of the key `without` left out."""
        return [f"--{key}" if text is None else f"{key}={text}" for key, text in self.settings if key != without]


def split_arguments(words: Sequence[str], flags: Collection[str] = ()) -> Arguments:
    """Settings are `--key value`, `--key=value`, `key=value`; for keys in `flags` also `--key` and `--no-key`.

    >>> words = ["my.yaml", "--batch-size", "64", "epochs=3", "--use_lora", "--no-report"]
    >>> split_arguments(words, flags={"use_lora", "report"}).settings
    (('batch_size', '64'), ('epochs', '3'), ('use_lora', None), ('report', 'false'))
    """
    positionals: list[str] = []
    settings: list[tuple[str, str | None]] = []
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        if found := _ASSIGNMENT.match(word):
            settings.append((_name(found["key"]), found["text"]))
        elif found := _OPTION.match(word):
            settings.append(_option(_name(found["key"]), waiting, flags))
        else:
            positionals.append(word)
    return Arguments(tuple(positionals), tuple(settings))


def refuse_misspelt(arguments: Arguments, options: Sequence[str]) -> None:
    """Raise UsageError for a setting that is an option of the command but for its hyphens and underscores.

    >>> refuse_misspelt(Arguments((), (("gradcheck", "my.yaml"),)), ["--grad_check"])
    Traceback (most recent call last):
    vembed.errors.UsageError: --gradcheck: no such option; did you mean --grad_check?
    """
    known = {_letters(option): option for option in reversed(options)}
    for name, _ in arguments.settings:
        if option := known.get(_letters(name)):
            raise UsageError(f"--{name}: no such option; did you mean {option}?")


def _letters(name: str) -> str:
    return name.replace("-", "").replace("_", "")


def parse_argument(key: Key, text: str | None) -> object:
    """The value of `key` that a command line's text writes: text stays text where the key takes it, the rest is YAML.

    None (an option without a value) is true. A list may come without its brackets: `1,5,10`.
    """
    if text is None:
        return True
    stripped = text.strip()
    if key.takes_null and stripped in ("null", "~"):
        return None
    nested = (key.takes_list and stripped.startswith("[")) or (key.takes_mapping and stripped.startswith("{"))
    if key.takes_text and not nested:
        return text
    if key.takes_list and not nested:
        return parse_value(f"[{stripped}]")
    return parse_value(stripped)


def _option(key: str, waiting: list[str], flags: Collection[str]) -> tuple[str, str | None]:
    """The setting that `--key` begins; takes its value, if it has one, from the end of `waiting`."""
    positive = key.removeprefix("no_")
    if key not in flags and positive in flags:
        return positive, "false"
    takes_next = waiting and not _ASSIGNMENT.match(waiting[-1]) and not _OPTION.match(waiting[-1])
    if takes_next and (key not in flags or waiting[-1].lower() in _BOOLS):
        return key, waiting.pop()
    return key, None


def _name(key: str) -> str:
    return key.replace("-", "_")
