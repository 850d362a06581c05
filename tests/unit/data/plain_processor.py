"""A real, small processor for tests of the data layer: character codes as tokens, pictures at 8 x 8 pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vembed.data.hashing import content_hash
from vembed.data.images import read_image
from vembed.types import AnyItem, EncodedItem, HeldItem, ImageTransform, Inputs, Item, LoadedItem, Ragged, Side

_LENGTH = 16
_SIZE = (8, 8)


@dataclass(frozen=True)
class PlainProcessor:
    """Follows types.Processor."""

    max_pixels: int = 1_000_000

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem:
        images = []
        for source in item.images:
            image = read_image(source, max_pixels=self.max_pixels)
            image = transform(image) if transform else image
            images.append({"pixel_values": torch.from_numpy(np.array(image.resize(_SIZE)).transpose(2, 0, 1).copy())})
        return LoadedItem(item.text, tuple(images), content_hash(item), draw, item.origin)

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        loaded = [self._loaded(item) for item in items]
        texts = [item.text for item in loaded if item.text is not None]
        tokens = [[ord(character) for character in text[:_LENGTH]] for text in texts]
        padded = torch.tensor([row + [0] * (_LENGTH - len(row)) for row in tokens], dtype=torch.int64)
        pixels = [image["pixel_values"] for item in loaded for image in item.images]
        tensors = {
            "input_ids": Ragged(
                padded.reshape(-1, _LENGTH), torch.tensor([item.text is not None for item in loaded]).long()
            ),
            "pixel_values": Ragged(
                torch.stack(pixels) if pixels else torch.empty(0, 3, *_SIZE, dtype=torch.uint8),
                torch.tensor([len(item.images) for item in loaded]),
            ),
        }
        return Inputs(len(loaded), tensors, sum(len(text) > _LENGTH for text in texts))

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]:
        return [_LENGTH * (item.text is not None) + len(item.images) for item in items]

    def finish(self, inputs: Inputs) -> Inputs:
        return inputs

    def _loaded(self, item: AnyItem) -> LoadedItem:
        if isinstance(item, EncodedItem):
            return self.load(item.item, item.transform, item.draw)
        return item if isinstance(item, LoadedItem) else self.load(item)
