"""Rules that keys declare of each other: which have no effect beside others, and which exclude one another."""

from collections.abc import Iterator, Mapping

from vembed.configuration.foreign_keys import foreign_key
from vembed.configuration.keys import Key, faults_of, unknown_key
from vembed.configuration.layers import Problem, Setting
from vembed.configuration.sections import Catalogue
from vembed.configuration.yaml_text import Location

_MAY_BE_EMPTY = frozenset({"query_prompt", "document_prompt"})


def value_problems(settings: Mapping[str, Setting], catalogue: Catalogue) -> Iterator[Problem]:
    """Unknown keys, keys of another loss, and values of the wrong type or out of range."""
    for name, setting in settings.items():
        if name in catalogue.idle:
            losses = " or ".join(catalogue.idle[name])
            yield Problem(
                setting.origin_at((name,)),
                (name,),
                f"only loss_type: {losses} has this key; take it out, or choose that",
            )
        elif name not in catalogue.keys:
            yield Problem(setting.origin_at((name,)), (name,), _unknown(name, catalogue))
        else:
            section = catalogue.sections[catalogue.keys[name].section]
            for fault in faults_of(section, {name: setting.value}):
                yield Problem(setting.origin_at(fault.location), fault.location, fault.text)
            for location in () if name in _MAY_BE_EMPTY else _empty_texts(setting.value, (name,)):
                yield Problem(setting.origin_at(location), location, "is empty; say what it should be, or take it out")


def _empty_texts(value: object, location: Location) -> Iterator[Location]:
    """Where texts in a value are empty. As a path, such a one is the current folder."""
    if isinstance(value, str) and not value.strip():
        yield location
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _empty_texts(part, (*location, str(name)))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _empty_texts(part, (*location, number))


def combination_problems(
    user: Mapping[str, Setting], values: Mapping[str, object], keys: Mapping[str, Key]
) -> Iterator[Problem]:
    """Settings of the user that contradict one another, or have no effect beside `values`."""
    for name, setting in user.items():
        if not setting.on:
            continue
        for other in keys[name].instead_of:
            if other in user and user[other].on:
                origin = user[other].origin_at((other,))
                yield Problem(
                    setting.origin_at((name,)), (name,), f"takes the place of {other} ({origin}); keep one of the two"
                )
        if unmet := unmet_condition(keys[name], values):
            yield Problem(
                setting.origin_at((name,)), (name,), f"has an effect only with {unmet}; set that, or take {name} out"
            )


def _unknown(name: str, catalogue: Catalogue) -> str:
    """The message for a key that does not exist, with ours for another trainer's, else with the nearest one."""
    hint = foreign_key(name)
    return unknown_key(name, [*catalogue.keys, *catalogue.idle]) if hint is None else f"unknown key; {hint}"


def unmet_condition(key: Key, values: Mapping[str, object]) -> str | None:
    """The condition under which `key` has an effect, in words, if it is not met: `use_lora: true`."""
    if key.condition is None:
        return None
    other, wanted = key.condition
    value = values.get(other)
    if value in wanted if wanted else value is not None:
        return None
    return " or ".join(f"{other}: {_yaml_text(want)}" for want in wanted) if wanted else other


def alternatives(name: str, settings: Mapping[str, Setting], keys: Mapping[str, Key]) -> list[str]:
    """The keys among `settings` that are on and of which either takes the place of the other, `name`."""
    return [
        other
        for other, setting in settings.items()
        if setting.on and (other in keys[name].instead_of or name in keys[other].instead_of)
    ]


def idle_keys(values: Mapping[str, object], keys: Mapping[str, Key]) -> dict[str, str]:
    """The keys that have no effect beside these values, with the reason in words."""
    reasons: dict[str, str] = {}
    for name, key in keys.items():
        if unmet := unmet_condition(key, values):
            reasons[name] = f"only with {unmet}"
        if values[name] is not None and values[name] is not False:
            reasons |= dict.fromkeys(key.instead_of, f"{name} is set")
    return reasons


def _yaml_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
