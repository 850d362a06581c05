"""Processors by family."""

from vembed.model.families.parts import FamilyParts
from vembed.model.processors.base import ItemProcessor

ProcessorRegistry: FamilyParts[type[ItemProcessor]] = FamilyParts("processor", lambda family: family.processor)
