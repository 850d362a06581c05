"""The processors of models with a vector per token."""

from vembed.model.files import ModelFolders
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


class LateProcessor(ItemProcessor):
    """The base of both kinds; `from_folders` chooses."""

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "LateProcessor":
        """The processor that the folders hold. Raises ModelError when its files are missing."""
        # The kinds build on this module.
        from vembed.model.processors.late_retrieval import LateRetrievalProcessor  # noqa: PLC0415
        from vembed.model.processors.late_text import LateTextProcessor  # noqa: PLC0415

        assert spec.late is not None
        kind: type[LateProcessor] = LateRetrievalProcessor if spec.late.native else LateTextProcessor
        return kind.from_folders(spec, folders, settings)
