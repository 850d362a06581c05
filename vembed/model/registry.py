"""Models by family, and any model by name: an alias, a hub id, or a folder."""

from vembed.model.base import BaseEmbeddingModel
from vembed.model.families.components import MODEL_CLASSES
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings


class Models:
    """The model class of each family; `get` loads a model."""

    def register(self, family: str, model_class: type[BaseEmbeddingModel]) -> type[BaseEmbeddingModel]:
        """Let models of this family be built by `model_class`."""
        return MODEL_CLASSES.register(family, model_class)

    def list(self) -> list[str]:
        """All families."""
        return MODEL_CLASSES.list()

    def __contains__(self, family: str) -> bool:
        return family in MODEL_CLASSES

    def model_class(self, family: str) -> type[BaseEmbeddingModel]:
        """The class that builds models of this family. Raises ModelError when the family is not known."""
        return MODEL_CLASSES.get(family)

    def get(self, name: str) -> BaseEmbeddingModel:
        """The model of an alias ("clip"), hub id or folder. Raises ModelError when there is none."""
        return VisualRetrievalModel.from_pretrained(name, ModelSettings()).model


ModelRegistry = Models()
