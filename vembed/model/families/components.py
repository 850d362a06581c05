"""Each family's component of one kind (its model class, its processor), by the family's name."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic

from vembed.model.families.family import Family
from vembed.model.families.registry import families, family_named
from vembed.registry import Component, Registry

if TYPE_CHECKING:
    from vembed.model.base import BaseEmbeddingModel


class FamilyComponents(Generic[Component]):
    """A registry of the components that families declare, imported on first use.

    A component that is registered for a family replaces the declared one.
    """

    def __init__(self, kind: str, declared: Callable[[Family], str]) -> None:
        self._own: Registry[Component] = Registry(kind)
        self._imported: Registry[Component] = Registry(kind)
        self._declared = declared

    def register(self, family: str, component: Component) -> Component:
        """Use this component for the family. Raises ConfigError if one was registered before."""
        return self._own.register(family, component)

    def get(self, family: str) -> Component:
        """The component of a family. Raises ModelError when the family is not known."""
        if family in self._own:
            return self._own.get(family)
        if family not in self._imported:
            self._imported.register_lazy(family, self._declared(family_named(family)))
        return self._imported.get(family)

    def list(self) -> list[str]:
        """All families, sorted."""
        return sorted({family.name for family in families()} | {*self._own.list()})

    def __contains__(self, family: str) -> bool:
        return family in self.list()


MODEL_CLASSES: "FamilyComponents[type[BaseEmbeddingModel]]" = FamilyComponents(
    "model family", lambda family: family.model
)
