"""The processors of models with a vector per token."""

from collections.abc import Mapping

from vembed.model.folder.find import ModelFolders
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


class LateProcessor(ItemProcessor):
    """The family's processor: `from_folders` chooses by the kind of model."""

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> ItemProcessor:
        """The processor that the folders hold. Raises ModelError when its files are missing."""
        # Two of the kinds build on this module.
        from vembed.model.late_interaction.native_processor import LateRetrievalProcessor  # noqa: PLC0415
        from vembed.model.late_interaction.text_processor import LateTextProcessor  # noqa: PLC0415
        from vembed.model.late_interaction.vlm_processor import LateVlmProcessor  # noqa: PLC0415

        assert spec.late is not None
        kinds: Mapping[str, type[ItemProcessor]] = {
            "native": LateRetrievalProcessor,
            "text": LateTextProcessor,
            "vlm": LateVlmProcessor,
        }
        return kinds[spec.late.kind].from_folders(spec, folders, settings)
