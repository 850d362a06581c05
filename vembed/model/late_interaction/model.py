"""The family's model class: loads one of the three kinds of late-interaction models."""

from collections.abc import Mapping

from vembed.model.base import BaseEmbeddingModel
from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.native import LateRetrievalModel
from vembed.model.late_interaction.projected import LateTextModel, LateVlmModel
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec

_KINDS: Mapping[str, type[BaseEmbeddingModel]] = {
    "native": LateRetrievalModel,
    "text": LateTextModel,
    "vlm": LateVlmModel,
}


class LateInteractionModel(BaseEmbeddingModel):
    """A model with a vector per token: `load` returns one of the class of the spec's kind."""

    @classmethod
    def load(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings, seed: int) -> BaseEmbeddingModel:
        """The model in the folders, by its kind."""
        assert spec.late is not None
        return _KINDS[spec.late.kind].load(spec, folders, settings, seed)
