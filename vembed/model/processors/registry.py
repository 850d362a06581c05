"""Processors by family."""

from vembed.model.processors.auto import ItemProcessor
from vembed.registry import Registry

ProcessorRegistry: Registry[type[ItemProcessor]] = Registry("processor")
for _family in ("clip", "siglip", "text", "vision", "composed"):
    ProcessorRegistry.register(_family, ItemProcessor)
