"""Config keys as their sections declare them: type, range, default, meaning, and when each has an effect."""

import json
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from yaml import YAMLError

from vembed.configuration.yaml_text import Location, dump_value
from vembed.registry import nearest_names
from vembed.utils.settings import Section

AnySection = TypeVar("AnySection", bound=Section)

_INT_LIMIT = 2**63
_WORDS = {str: "text", int: "int", float: "float", bool: "true or false"}
_LIMITS: tuple[tuple[Any, str, str], ...] = (  # Any: the limits are types of several shapes
    (annotated_types.Ge, "ge", "at least"),
    (annotated_types.Gt, "gt", "greater than"),
    (annotated_types.Le, "le", "at most"),
    (annotated_types.Lt, "lt", "less than"),
)


@dataclass(frozen=True)
class Key:
    """One config key as its section declares it."""

    name: str
    section: str
    field: FieldInfo

    @property
    def default(self) -> Any:  # Any: each key has a type of its own
        """The key's value when nobody sets it."""
        return self.field.get_default(call_default_factory=True)

    @property
    def description(self) -> str:
        """The key's meaning, in one sentence."""
        return self.field.description or ""

    @property
    def common(self) -> bool:
        """True if it is one of the keys that matter most."""
        return bool(self._marks.get("common"))

    @property
    def instead_of(self) -> tuple[str, ...]:
        """The keys whose place it takes."""
        return tuple(self._marks.get("instead_of", ()))

    @property
    def condition(self) -> tuple[str, tuple[object, ...]] | None:
        """The key and its values (none: any but null) without which this one has no effect."""
        mark = self._marks.get("only_with")
        return (mark[0], tuple(mark[1:])) if mark else None

    @property
    def type_text(self) -> str:
        """Its type as help and messages write it, without its range."""
        return type_text(self.field.annotation)

    @property
    def expected(self) -> str:
        """Its type with its range: `int, at least 1`."""
        return ", ".join([self.type_text, *limits(self.field.metadata)])

    @property
    def is_flag(self) -> bool:
        """True if its value is true or false."""
        return self.field.annotation is bool

    @property
    def takes_text(self) -> bool:
        """True if any text is a value of it."""
        return str in _options(self.field.annotation)

    @property
    def takes_list(self) -> bool:
        """True if a list is a value of it."""
        return any(get_origin(_bare(option)) is tuple for option in _options(self.field.annotation))

    @property
    def takes_mapping(self) -> bool:
        """True if a mapping is a value of it."""
        return any(get_origin(option) is dict or _is_section(option) for option in _options(self.field.annotation))

    @property
    def takes_null(self) -> bool:
        """True if null is a value of it."""
        return type(None) in _options(self.field.annotation)

    @property
    def needs_consent(self) -> bool:
        """True if it lets code of others run, or more be read than was pointed at."""
        return bool(self._marks.get("needs_consent"))

    @property
    def _marks(self) -> Mapping[str, Any]:
        extra = self.field.json_schema_extra
        return extra if isinstance(extra, dict) else {}


def keys_of(section: str, settings: type[Section]) -> dict[str, Key]:
    """The keys that a section class declares, by name, in its order."""
    return {name: Key(name, section, field) for name, field in settings.model_fields.items()}


def type_text(annotation: Any) -> str:  # Any: whatever may stand in an annotation
    """A type in words.

    >>> type_text(int | Literal["auto"]), type_text(tuple[str, ...] | None), type_text(dict[str, float])
    ('int or auto', 'list of text', 'mapping of text to float')
    """
    options = [option for option in _options(annotation) if option is not type(None)]
    return " or ".join(_option_text(option) for option in options)


def limits(metadata: list[Any]) -> list[str]:  # Any: pydantic's own type for a field's constraints
    """The limits of a field in words: `["at least 1", "at most 64"]`."""
    texts = [
        f"{words} {getattr(limit, attribute)}"
        for limit in metadata
        for kind, attribute, words in _LIMITS
        if isinstance(limit, kind)
    ]
    return texts + ["not empty" for limit in metadata if isinstance(limit, annotated_types.MinLen)]


def as_plain_value(value: object) -> object:
    """`value` as JSON and YAML know it: tuples as lists, paths as text, sections as mappings of what was set."""
    if isinstance(value, Section):
        return {
            name: as_plain_value(getattr(value, name))
            for name in type(value).model_fields
            if name in value.model_fields_set
        }
    if isinstance(value, Mapping):
        return {str(key): as_plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_plain_value(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@dataclass(frozen=True)
class Fault:
    """A mistake in one value, and its place there: `("data_path", 0, "weight")`."""

    location: Location
    text: str


def faults_of(settings: type[Section], values: Mapping[str, object]) -> list[Fault]:
    """Everything that is wrong with values for a section; all of them are keys of it.

    Types are strict: the text "64", 64.5 and true are no int.

    >>> from vembed.training.settings import TrainingSettings
    >>> faults_of(TrainingSettings, {"batch_size": 0, "on_nan": "raise"})
    [Fault(location=('batch_size',), text='expected int, at least 1; got 0')]
    """
    faults: list[Fault] = []
    for name, value in values.items():
        key = Key(name, "", settings.model_fields[name])
        if isinstance(value, int) and abs(value) >= _INT_LIMIT:
            faults.append(
                Fault((name,), f"expected {key.expected}; got a number of {len(f'{value:x}')} hexadecimal digits")
            )
            continue
        try:
            text = json.dumps({name: value})
            if r"\u0000" in text:
                faults.append(Fault((name,), "holds a null character, which no name, path or text has"))
                continue
            settings.model_validate_json(text, strict=True)
        except ValidationError as error:
            details = [detail for detail in error.errors() if detail["loc"][:1] == (name,)]
            faults += _faults(key, value, details or error.errors())  # of what is no JSON the place is not told
        except (TypeError, ValueError, RecursionError):
            faults.append(Fault((name,), f"expected {key.expected}; got {format_value(value)}"))
    return faults


def build(settings: type[AnySection], values: Mapping[str, object]) -> AnySection:
    """The section with these values, which have no faults."""
    return settings.model_validate_json(json.dumps(dict(values)), strict=True)


def format_value(value: object) -> str:
    """A value as a message shows it: text in quotes, what YAML knows as YAML, cut at 80 characters."""
    try:
        text = repr(value) if isinstance(value, str) else dump_value(value)
    except YAMLError:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _faults(key: Key, value: object, details: list[ErrorDetails]) -> Iterator[Fault]:
    """One fault per location: a union reports every branch, and the deepest location is where the value goes wrong."""
    locations: dict[Location, list[ErrorDetails]] = {}
    for detail in details:
        locations.setdefault(_location_in(value, detail), []).append(detail)
    for location, same in locations.items():
        if not any(other[: len(location)] == location and other != location for other in locations):
            text = (
                _nested_text(key, location, same) if location else f"expected {key.expected}; got {format_value(value)}"
            )
            yield Fault((key.name, *location), text)


def _location_in(value: object, detail: ErrorDetails) -> Location:
    """The part of a pydantic location that leads through `value`; the rest are names of types."""
    location: list[int | str] = []
    for part in detail["loc"][1:]:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
            location.append(part)
        if isinstance(value, list) and isinstance(part, int):
            value = value[part]
            location.append(part)
    return (*location, detail["loc"][-1]) if detail["type"] == "missing" else tuple(location)


def _nested_text(key: Key, location: Location, same: Sequence[ErrorDetails]) -> str:
    detail = same[-1]
    if detail["type"] == "missing":
        return "is missing"
    if detail["type"] == "extra_forbidden":
        return unknown_key(str(location[-1]), _nested_names(key.field.annotation))
    wanted = " or ".join(dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in same))
    return f"expected {wanted}; got {format_value(detail['input'])}"


def unknown_key(name: str, known: Iterable[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = nearest_names(name, known)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"


def _nested_names(annotation: Any) -> list[str]:  # Any: whatever may stand in an annotation
    if _is_section(annotation):
        return list(annotation.model_fields)
    return [name for option in get_args(annotation) for name in _nested_names(option)]


def _is_section(annotation: Any) -> bool:  # Any: whatever may stand in an annotation
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _options(annotation: Any) -> tuple[Any, ...]:  # Any: whatever may stand in an annotation
    """The members of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _bare(annotation: Any) -> Any:  # Any: whatever may stand in an annotation
    """The type without the constraints that `Annotated` puts around it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _option_text(option: Any) -> str:  # Any: whatever may stand in an annotation
    origin, arguments = get_origin(option), get_args(option)
    if origin is Annotated:
        ranges = [limit for field in arguments[1:] for limit in limits(field.metadata)]
        return ", ".join([type_text(arguments[0]), *ranges])
    if origin is Literal:
        return ", ".join(map(str, arguments[:-1])) + (" or " if arguments[1:] else "") + str(arguments[-1])
    if origin is tuple:
        return f"list of {' / '.join(_option_text(each) for each in _options(arguments[0]))}"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    return _WORDS[option] if option in _WORDS else f"{{{_nested_names(option)[0]}, ...}}"
