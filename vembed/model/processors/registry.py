"""Processors by family."""

from vembed.model.families.components import FamilyComponents
from vembed.model.processors.base import ItemProcessor

ProcessorRegistry: FamilyComponents[type[ItemProcessor]] = FamilyComponents(
    "processor", lambda family: family.processor
)
