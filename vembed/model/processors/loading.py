"""A model's processor, with its weights or without them."""

from vembed.model.checkpoint import find_folders, processor_folders
from vembed.model.detect import detect
from vembed.model.folder.find import ModelFolders
from vembed.model.processors.base import ItemProcessor
from vembed.model.processors.registry import ProcessorRegistry
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec


def load_processor(name: str | None, settings: ModelSettings) -> ItemProcessor:
    """The processor of a folder or hub id (default: of the names in the settings), which tells what the model can read.

    Raises ModelError.
    """
    name = name if name is not None else settings.model_name
    spec = detect(name, settings).spec
    return processor_in(find_folders(name, settings, spec), spec, settings)


def processor_in(folders: ModelFolders, spec: ModelSpec, settings: ModelSettings) -> ItemProcessor:
    """The processor of a model that was found. Raises ModelError when its files are missing."""
    return ProcessorRegistry.get(spec.family).from_folders(spec, processor_folders(folders, settings), settings)
