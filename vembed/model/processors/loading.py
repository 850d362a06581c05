"""The processor of a model's folders."""

from vembed.model.checkpoint import processor_folders
from vembed.model.folder.find import ModelFolders
from vembed.model.processors.base import ItemProcessor
from vembed.model.processors.registry import ProcessorRegistry
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


def processor_in(folders: ModelFolders, spec: ModelSpec, settings: ModelSettings) -> ItemProcessor:
    """The processor of a model that was found. Raises ModelError when its files are missing."""
    return ProcessorRegistry.get(spec.family).from_folders(spec, processor_folders(folders, settings), settings)
