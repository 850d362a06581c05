"""YAML as people expect it: `2e-5` is a number, `no` is text, every key once, every key with its line.

PyYAML follows YAML 1.1, where `2e-5` is text, `no` is false, `1:30` is ninety and `0123` is eighty-three. Here a plain
scalar is null, true/false, a number, or text (the core schema of YAML 1.2).
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from vembed.data.formats import DATA_ENDINGS
from vembed.errors import ConfigError
from vembed.utils.untrusted import library_errors, library_message, printable, read_regular_file

Location = tuple[str | int, ...]

_MAX_BYTES = 2**20  # of a file; a config is a page or two
_MAX_NODES = 50_000  # values, those that aliases repeat counted each time
_MAX_DEPTH = 50
_MAX_DIGITS = 400  # the largest float has 309

_NULL = re.compile(r"^(?:null|Null|NULL|~|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NUMBER_STARTS = list("-+0123456789.")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, whole numbers such as `1e6` as int, no other tags, and limits.

    Raises ConfigError with line for everything that is wrong. name: of the file, for messages.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads a plain class attribute
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._sizes: dict[yaml.Node, int] = {}  # values in each finished node, those behind aliases counted again
        self._open: list[int] = [0]  # the same of the nodes that are being read, the innermost last
        with self._errors():
            super().__init__(text)

    def read(self) -> yaml.Node | None:
        """The one document's root; None without any."""
        with self._errors():
            root: yaml.Node | None = self.get_single_node()
            return root

    def value_of(self, root: yaml.Node) -> Any:  # Any: whatever YAML can write
        """The value of a document."""
        with self._errors():
            return self.construct_document(root)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # Any: as PyYAML has it
        """PyYAML's, with limits: an alias may repeat a part, but not until a page stands for millions of values."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        if len(self._open) > _MAX_DEPTH:
            raise self._error(event, f"values are nested more than {_MAX_DEPTH} deep")
        self._open.append(1)
        node = super().compose_node(parent, index)
        size = self._open.pop()
        if is_alias and node not in self._sizes:
            raise self._error(event, f"the alias *{event.anchor} stands within what it repeats")
        if node is not None:
            size = self._sizes.setdefault(node, size)
        self._open[-1] += size
        if self._open[-1] > _MAX_NODES:
            raise self._error(event, f"it stands for more than {_MAX_NODES:,} values, aliases counted as often as used")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML's, with the line of a value that cannot be what its tag says."""
        with self._errors(node):
            return super().construct_object(node, deep=deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The number a scalar writes: int where it has no fraction sign, or an exponent that leaves it whole."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(text):,} digits")
        if _INT.match(text):
            return int(text)
        if not _FLOAT.match(text):
            raise ValueError(f"{text!r} is no number")
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        return int(value) if "e" in text and value.is_integer() else value

    def construct_bool(self, node: yaml.ScalarNode) -> bool:
        """True or false."""
        text = str(self.construct_scalar(node))
        if not _BOOL.match(text):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"

    def construct_null(self, node: yaml.ScalarNode) -> None:
        """None."""
        text = str(self.construct_scalar(node))
        if not _NULL.match(text):
            raise ValueError(f"{text!r} is not null")

    def construct_unknown(self, node: yaml.Node) -> None:
        """Refuse a tag that no plain value has."""
        raise ValueError(f"the tag {str(node.tag).replace('tag:yaml.org,2002:', '!!')!r} is not read")

    def _error(self, event: Any, text: str) -> ConfigError:  # Any: PyYAML's events and nodes, which have marks alike
        return ConfigError(f"{self._name}:{event.start_mark.line + 1}: not valid YAML: {text}")

    @contextmanager
    def _errors(self, node: yaml.Node | None = None) -> Iterator[None]:
        """Whatever PyYAML and Python raise here as a ConfigError with its line: the node's, or where the reader is."""
        with library_errors(ConfigError, f"{self._name}: not valid YAML"):
            try:
                yield
            except yaml.MarkedYAMLError as error:
                mark = error.problem_mark or error.context_mark or self.get_mark()
                problem = printable(str(error.problem or error.context))
                raise ConfigError(f"{self._name}:{mark.line + 1}: not valid YAML: {problem}") from error
            except (ValueError, ArithmeticError) as error:  # of a constructor, or of an escape such as "\\UFFFFFFFF"
                mark = self.get_mark() if node is None else node.start_mark
                raise ConfigError(f"{self._name}:{mark.line + 1}: not valid YAML: {library_message(error)}") from error


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
for _tag, _construct in (
    ("tag:yaml.org,2002:null", _Loader.construct_null),
    ("tag:yaml.org,2002:bool", _Loader.construct_bool),
    ("tag:yaml.org,2002:int", _Loader.construct_number),
    ("tag:yaml.org,2002:float", _Loader.construct_number),
    ("tag:yaml.org,2002:str", _Loader.construct_yaml_str),
    ("tag:yaml.org,2002:seq", _Loader.construct_yaml_seq),
    ("tag:yaml.org,2002:map", _Loader.construct_yaml_map),
):
    _Loader.add_constructor(_tag, _construct)
_Loader.add_constructor(None, _Loader.construct_unknown)
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
        data = read_regular_file(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: cannot be read as a YAML file: {reason}") from error
    return parse_yaml(_decoded(data, path), str(path))


def _decoded(data: bytes, path: str | Path) -> str:
    """The text of a file. Raises ConfigError, with line, for bytes that are no UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{path}:1: cannot be read as a YAML file: it is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: cannot be read as a YAML file: it is no UTF-8 ({error.reason})") from error


def parse_yaml(text: str, name: str = "<text>") -> YamlMapping:
    """The mapping in `text`.

    >>> parse_yaml("learning_rate: 2e-5\\nmixed_precision: no").values
    {'learning_rate': 2e-05, 'mixed_precision': 'no'}
    >>> parse_yaml("epochs: 3\\nepochs: 4", "my.yaml")
    Traceback (most recent call last):
    vembed.errors.ConfigError: my.yaml:2: epochs is set twice (first in line 1); keep one
    """
    _refuse_controls(text, name)
    loader = _Loader(text, name)
    root = loader.read()
    if root is None:
        return YamlMapping({}, {}, name)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}:{root.start_mark.line + 1}: the file must hold `key: value` lines")
    _refuse_duplicates(root, name)
    values = loader.value_of(root)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name}:{root.start_mark.line + 1}: the file must hold `key: value` lines")
    return YamlMapping({str(key): value for key, value in values.items()}, dict(_walk(root, ())), name)


def parse_value(text: str) -> object:
    """The value that `text` writes in YAML, or the text itself if it is no YAML. Raises ConfigError for a key twice.

    >>> parse_value("{vision: 1e-5}"), parse_value("64"), parse_value("a: b: c")
    ({'vision': 1e-05}, 64, 'a: b: c')
    """
    try:
        loader = _Loader(text, "the value")
        root = loader.read()
        value = None if root is None else loader.value_of(root)
    except ConfigError:
        return text
    if root is not None:
        _refuse_duplicates(root, "command line")
    return value


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


def _refuse_controls(text: str, name: str) -> None:
    """Raise ConfigError, with line, for a character that YAML does not allow."""
    if found := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: it holds the character {found.group()!a}")
