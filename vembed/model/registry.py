"""Models by family, and any model by name: an alias, a hub id, or a folder."""

from vembed.model.base import BaseEmbeddingModel
from vembed.model.settings import ModelSettings
from vembed.registry import Registry


class Models:
    """Knows the class of each family; `get` loads a model."""

    def __init__(self) -> None:
        self._families: Registry[type[BaseEmbeddingModel]] = Registry("model family")

    def register(self, family: str, model_class: type[BaseEmbeddingModel]) -> type[BaseEmbeddingModel]:
        """Let models of this family be built by `model_class`."""
        return self._families.register(family, model_class)

    def register_lazy(self, family: str, target: str) -> None:
        """As register, with the class ("package.module:Class") imported on first use."""
        self._families.register_lazy(family, target)

    def list(self) -> list[str]:
        """All families."""
        return self._families.list()

    def __contains__(self, family: str) -> bool:
        return family in self._families

    def model_class(self, family: str) -> type[BaseEmbeddingModel]:
        """The class that builds models of this family."""
        return self._families.get(family)

    def get(self, name: str) -> BaseEmbeddingModel:
        """The model of an alias ("clip"), hub id or folder. Raises ModelError when there is none."""
        from vembed.model.modeling import VisualRetrievalModel  # noqa: PLC0415 (modeling builds on this registry)

        return VisualRetrievalModel.from_pretrained(name, ModelSettings()).model


ModelRegistry = Models()
for _family in ("clip", "siglip"):
    ModelRegistry.register_lazy(_family, "vembed.model.backbones.auto:DualModel")
ModelRegistry.register_lazy("text", "vembed.model.backbones.auto:TextModel")
ModelRegistry.register_lazy("vision", "vembed.model.backbones.auto:VisionModel")
ModelRegistry.register_lazy("composed", "vembed.model.backbones.composed:ComposedModel")
