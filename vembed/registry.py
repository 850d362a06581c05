"""One registry for everything that is chosen by name: models, processors, collators, losses, trackers."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from vembed.errors import ConfigError

Component = TypeVar("Component")


def nearest_names(name: str, known: Iterable[str], *, limit: int = 1) -> list[str]:
    """The known names that look most like `name`, best first, at most `limit`.

    >>> nearest_names("infonse", ["triplet", "infonce"])
    ['infonce']
    """
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.6)


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """What is wrong with a name that none of `kind` has, with the nearest that one has.

    >>> no_such("fusion", "gatd", ["gated", "sum"])
    "there is no fusion 'gatd'; did you mean gated? Known: gated, sum"
    """
    names = list(known)
    near = nearest_names(name, names)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"there is no {kind} {name!r}{hint} Known: {', '.join(names)}"


class Registry(Generic[Component]):
    """Maps a name to a component, or to the `module:attribute` that holds it and is imported on first use.

    >>> colours = Registry[str]("colour")
    >>> colours.register("red", "crimson")
    'crimson'
    >>> colours.get("red")
    'crimson'
    >>> colours.get("rde")
    Traceback (most recent call last):
    vembed.errors.ConfigError: unknown colour 'rde'; did you mean 'red'? Known: red
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._components: dict[str, Component] = {}
        self._lazy: dict[str, str] = {}

    def register(self, name: str, component: Component) -> Component:
        """Add `component` under `name`. Raises ConfigError when the name is taken by another component."""
        self._refuse_taken(name)
        self._components[name] = component
        return component

    def register_lazy(self, name: str, target: str) -> None:
        """Add the component at `target` ("package.module:attribute"), imported when it is first asked for."""
        self._refuse_taken(name)
        self._lazy[name] = target

    def decorator(self, name: str) -> Callable[[Component], Component]:
        """Register what is decorated under `name`."""
        return lambda component: self.register(name, component)

    def get(self, name: str) -> Component:
        """The component called `name`. Raises ConfigError that lists the known names and the nearest one."""
        if name not in self._components:
            if name not in self._lazy:
                raise ConfigError(self._unknown(name))
            module, attribute = self._lazy[name].split(":")
            self._components[name] = getattr(importlib.import_module(module), attribute)
        return self._components[name]

    def list(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._components, *self._lazy})

    def __contains__(self, name: str) -> bool:
        return name in self._components or name in self._lazy

    def _refuse_taken(self, name: str) -> None:
        if name in self:
            raise ConfigError(f"{self._kind} {name!r} is registered already; choose another name")

    def _unknown(self, name: str) -> str:
        near = nearest_names(name, self.list())
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"unknown {self._kind} {name!r}{hint} Known: {', '.join(self.list())}"
