"""What a teacher cannot read is a bad sample of the student's data, found where its rows are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vembed.errors import DataError
from vembed.types import AnyItem, HeldItem, ImageTransform, Inputs, Item, LoadedItem, Processor, Side


@dataclass(frozen=True)
class TaughtProcessor:
    """The student's processor, for rows that a teacher is to read too. refused: why it cannot, by content hash."""

    inner: Processor
    teacher: str
    refused: Mapping[int, str]

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem:
        """As the student's. Raises DataError for an item that the teacher cannot read."""
        loaded = self.inner.load(item, transform, draw)
        reason = self.refused.get(loaded.content_hash)
        if reason is not None:
            where = f"{item.origin}: " if item.origin else ""
            raise DataError(f"{where}the teacher {self.teacher} cannot read it: {reason}")
        return loaded

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """As the student's."""
        return self.inner.prepare(items, side)

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]:
        """As the student's."""
        return self.inner.count_tokens(items, side)

    def finish(self, inputs: Inputs) -> Inputs:
        """As the student's."""
        return self.inner.finish(inputs)
