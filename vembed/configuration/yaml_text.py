"""YAML as people expect it: `2e-5` is a number, `no` is text, every key once, every key with its line.

PyYAML follows YAML 1.1, where `2e-5` is text, `no` is false, `1:30` is ninety and `0123` is eighty-three. Here a plain
scalar is null, true/false, a number, or text (the core schema of YAML 1.2).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vembed.data.formats import DATA_ENDINGS
from vembed.errors import ConfigError

Location = tuple[str | int, ...]

_NULL = re.compile(r"^(?:null|Null|NULL|~|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NUMBER_STARTS = list("-+0123456789.")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, and whole numbers such as `1e6` as int."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads a plain class attribute

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The number a scalar writes: int where it has no fraction sign, or an exponent that leaves it whole."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        if _INT.match(text):
            return int(text)
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        return int(value) if "e" in text and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes the texts that `_Loader` would read as a number."""


for _tag, _pattern, _starts in (
    ("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", _BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, _NUMBER_STARTS),
    ("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS),
    ("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(_tag, _pattern, _starts)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS)


@dataclass(frozen=True)
class YamlMapping:
    """A YAML file's top-level mapping, and the line of every key and list entry in it."""

    values: Mapping[str, object]
    lines: Mapping[Location, int] = field(default_factory=dict)
    name: str = ""

    def origin(self, location: Location) -> str:
        """`file:line` of the innermost key on the way to `location` that has a line."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.lines:
                return f"{self.name}:{self.lines[location[:end]]}"
        return self.name


def read_yaml(path: str | Path) -> YamlMapping:
    """The mapping a YAML file holds. Raises ConfigError, with line, for what is not one or names a key twice."""
    if Path(path).suffix in DATA_ENDINGS - {".json"}:
        raise ConfigError(f"{path} is data, not a YAML file; write --data_path {path}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML file: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "<text>") -> YamlMapping:
    """The mapping in `text`.

    >>> parse_yaml("learning_rate: 2e-5\\nmixed_precision: no").values
    {'learning_rate': 2e-05, 'mixed_precision': 'no'}
    >>> parse_yaml("epochs: 3\\nepochs: 4", "my.yaml")
    Traceback (most recent call last):
    vembed.errors.ConfigError: my.yaml:2: epochs is set twice (first in line 1); keep one
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return YamlMapping({}, {}, name)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{name}:1: the file must hold `key: value` lines")
        _refuse_duplicates(root, name)
        values = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{name}:{_line(error)}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error
    return YamlMapping({str(key): value for key, value in values.items()}, dict(_walk(root, ())), name)


def parse_value(text: str) -> object:
    """The value that `text` writes in YAML, or the text itself if it is no YAML.

    >>> parse_value("{vision: 1e-5}"), parse_value("64"), parse_value("a: b: c")
    ({'vision': 1e-05}, 64, 'a: b: c')
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError:
        return text


def dump_value(value: object) -> str:
    """`value` in one line of YAML that `parse_value` reads back.

    >>> dump_value({"vision": 1e-5, "text": "2e-5"})
    "{vision: 1.0e-05, text: '2e-5'}"
    """
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return str(text).removesuffix("\n").removesuffix("\n...")


def _refuse_duplicates(node: yaml.Node, name: str) -> None:
    first: dict[str, int] = {}
    for key, child in _children(node):
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in first:
                raise ConfigError(
                    f"{name}:{line}: {key.value} is set twice (first in line {first[key.value]}); keep one"
                )
            first[key.value] = line
        _refuse_duplicates(child, name)


def _children(node: yaml.Node) -> Iterator[tuple[yaml.Node | None, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value
    elif isinstance(node, yaml.SequenceNode):
        yield from ((None, child) for child in node.value)


def _walk(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    for number, (key, child) in enumerate(_children(node)):
        part = str(key.value) if isinstance(key, yaml.ScalarNode) else number
        yield (*location, part), (key or child).start_mark.line + 1
        yield from _walk(child, (*location, part))


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1
