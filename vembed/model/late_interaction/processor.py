"""The family's processor class: loads the processor of one of the three kinds of late-interaction models."""

from collections.abc import Mapping

from vembed.model.folder.find import ModelFolders
from vembed.model.late_interaction.native_processor import LateRetrievalProcessor
from vembed.model.late_interaction.text_processor import LateTextProcessor
from vembed.model.late_interaction.vlm_processor import LateVlmProcessor
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec

_KINDS: Mapping[str, type[ItemProcessor]] = {
    "native": LateRetrievalProcessor,
    "text": LateTextProcessor,
    "vlm": LateVlmProcessor,
}


class LateProcessor(ItemProcessor):
    """The family's processor: `from_folders` returns one of the class of the spec's kind."""

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> ItemProcessor:
        """The processor that the folders hold. Raises ModelError when its files are missing."""
        assert spec.late is not None
        return _KINDS[spec.late.kind].from_folders(spec, folders, settings)
