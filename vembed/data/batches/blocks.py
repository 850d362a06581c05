"""Loads blocks of rows, in any process: from row numbers to decoded examples, or to the reasons why there is none."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from vembed.data.batches.augment import image_transform
from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.documents import ReadDocuments, other_negatives, read_all, read_what_can_be
from vembed.data.hashing import content_hash, mixed_hash, row_name
from vembed.data.images import encoded_image
from vembed.data.negatives import check_negatives, choose_negatives, with_documents
from vembed.data.validation import BadRow
from vembed.errors import DataError
from vembed.types import EncodedItem, Example, HeldItem, ImageTransform, Item, LoadedExample, Processor, RowNeeds

_NO_NEEDS = RowNeeds()


@dataclass(frozen=True)
class Block:
    """Rows of one data set (by number) to be loaded for an epoch."""

    dataset: int
    rows: tuple[int, ...]
    epoch: int


LoadedRow = LoadedExample | BadRow


@dataclass(frozen=True)
class BlockLoader:
    """Loads blocks. Holds no state, so that any process gives the same result."""

    datasets: Sequence[VisualRetrievalDataset]
    processor: Processor
    seed: int
    augment: Literal["none", "light", "strong"] = "none"
    num_hard_negatives: int | None = None
    query_image_as_negative: bool = False
    image_host_cache: Literal["uint8", "encoded"] = "uint8"
    on_bad_sample: Literal["raise", "skip"] = "raise"

    def load(self, block: Block) -> list[LoadedRow]:
        """Each row of the block, loaded, or why it cannot be."""
        return [self._load_row(self.datasets[block.dataset], row, block.epoch) for row in block.rows]

    def load_example(self, example: Example, epoch: int, needs: RowNeeds = _NO_NEEDS) -> LoadedExample:
        """The example with its pictures decoded and changed (or their files' bytes held), and its negatives chosen.

        With on_bad_sample: skip, without the documents that cannot be read, as long as it has those of `needs`.
        Raises DataError.
        """
        row = row_name(example.origin)
        numbers: Sequence[int] = range(len(example.negatives))
        chosen = choose_negatives(numbers, self.num_hard_negatives, seed=self.seed, epoch=epoch, row=row)
        query = self._load_item(example.query, epoch, 0, row)
        loaded = self._documents(example, chosen, epoch, needs)
        ignored, unknown = self._ignored(example)
        kept = with_documents(example, list(loaded.positives), list(loaded.negatives))
        result = LoadedExample(
            query=query,
            positives=tuple(loaded.positives.values()),
            negatives=tuple(loaded.negatives.values()),
            group=example.group,
            origin=example.origin,
            ignored=ignored,
            scores=kept.scores,
            embeddings=kept.embeddings,
            query_image=self._query_image(example.query, epoch, 1 + len(example.positives) + len(chosen), row),
            left_out=(*loaded.left_out, *unknown),
        )
        check_negatives(result)
        return result

    def _documents(
        self, example: Example, chosen: Sequence[int], epoch: int, needs: RowNeeds
    ) -> ReadDocuments[HeldItem]:
        row = row_name(example.origin)

        def load(item: Item, slot: int) -> HeldItem:
            return self._load_item(item, epoch, slot, row)

        if self.on_bad_sample == "raise":
            return read_all(example, chosen, load)
        others = other_negatives(example, chosen, seed=self.seed, epoch=epoch)
        return read_what_can_be(example, chosen, load, needs=needs, others=others)

    def _ignored(self, example: Example) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The content hashes of ignored documents, and why others have none: nothing is compared with those."""
        hashes, unknown = [], []
        for item in example.ignored:
            try:
                hashes.append(content_hash(item))
            except DataError as error:
                if self.on_bad_sample == "raise":
                    raise
                unknown.append(str(error))
        return tuple(hashes), tuple(unknown)

    def _query_image(self, query: Item, epoch: int, slot: int, row: str) -> HeldItem | None:
        """The pictures of a query that has a text too, as a document."""
        if not self.query_image_as_negative or query.text is None or not query.images:
            return None
        return self._load_item(replace(query, text=None), epoch, slot, row)

    def _load_row(self, dataset: VisualRetrievalDataset, row: int, epoch: int) -> LoadedRow:
        try:
            return self.load_example(dataset[row], epoch, dataset.reader.needs)
        except DataError as error:
            return BadRow(dataset.origin(row), str(error))

    def _load_item(self, item: Item, epoch: int, slot: int, row: str) -> HeldItem:
        change, draw = None, 0
        if self.augment != "none" and item.images:
            change = image_transform(self.augment, self.seed, epoch, row=row, slot=slot)
            draw = 1 + mixed_hash("draw", self.augment, self.seed, epoch, row, slot) // 2  # never 0, and fits int64
        if self.image_host_cache == "encoded" and item.images:
            return self._encoded(item, change, draw)
        return self.processor.load(item, change, draw)

    def _encoded(self, item: Item, change: ImageTransform | None, draw: int) -> HeldItem:
        """The item with its files' bytes; with its pixels where these are fewer, or a picture has no file.

        It is decoded in any case: a picture that cannot be is found here.
        """
        held = replace(item, images=tuple(encoded_image(source) for source in item.images))
        loaded = self.processor.load(held, change, draw)
        files = [source.data for source in held.images if source.data is not None]
        decoded = sum(tensor.nbytes for image in loaded.images for tensor in image.values())
        if len(files) < len(held.images) or decoded <= sum(map(len, files)):
            return loaded
        return EncodedItem(held, loaded.content_hash, draw, change)


def pack(loader: BlockLoader, block: Block) -> bytes:
    """The block, loaded, as a worker process sends it: in one string of bytes.

    A tensor sent by itself costs a file descriptor, and a few batches of pictures would use up a process's limit.
    """
    packed = io.BytesIO()
    _Pickler(packed, protocol=5).dump((block, loader.load(block)))
    return packed.getvalue()


def unpack(packed: bytes) -> tuple[Block, list[LoadedRow]]:
    """The block that a worker sent and its loaded rows."""
    block, rows = pickle.loads(packed)
    return block, rows


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays: torch's own way costs a tenth of a millisecond for each."""

    def reducer_override(self, value: Any) -> Any:  # Any: pickle's own protocol
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented
