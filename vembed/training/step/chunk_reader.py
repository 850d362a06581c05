"""When the rows of a chunk are prepared, and what is kept of them for the second forward.

Texts are prepared once per step; rows with pictures whenever their chunk is run, for what is made of them is large.
What a frozen tower gives for a chunk is kept, so that it is run once per step; what it gives for every token is larger,
and kept up to a limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vembed.model.backbones.kept_pictures import PICTURE_STATES
from vembed.model.network.features import FEATURES
from vembed.training.step.chunking import Side
from vembed.types import HeldItem, Inputs, ItemRows, LoadedItem, Processor, Ragged

MADE = frozenset({*FEATURES.values(), PICTURE_STATES})  # the names of what frozen towers gave


class ChunkReader:
    """Prepares the chunks of one step. Those without pictures are prepared once and kept, for tokens are small.

    most_state_bytes: of what frozen towers give for every token, as much is kept (the last chunk may go over it).
    """

    def __init__(self, processor: Processor, most_state_bytes: int = 0) -> None:
        self._processor = processor
        self._room = most_state_bytes
        self._kept: dict[ItemRows, Inputs] = {}
        self._num_truncated: dict[ItemRows, int] = {}
        self._left: dict[ItemRows, tuple[Sequence[HeldItem], Mapping[str, Ragged]]] = {}
        self._fixed: dict[int, tuple[Inputs, Inputs]] = {}  # by id of the first, which lives as long as this

    def __call__(self, chunk: Side) -> Inputs:
        """The chunk's inputs, on the host; with the features that are kept of it, finished and wherever those are."""
        if isinstance(chunk, Inputs):
            return self._fixed.get(id(chunk), (chunk, chunk))[1]  # whose texts were counted when they were cut
        if chunk in self._kept:
            return self._kept[chunk]
        items, features = self._left.get(chunk, (chunk.items, {}))
        inputs = self._processor.prepare(items, chunk.side)
        self._num_truncated.setdefault(chunk, inputs.num_truncated)
        inputs = replace(inputs, tensors={**inputs.tensors, **features})
        if not any(item.images for item in items):
            self._kept[chunk] = inputs
        return inputs

    @property
    def has_room(self) -> bool:
        """Whether more of what frozen towers give for every token may be kept."""
        return self._room > 0

    def keep(self, chunk: Side, read: Inputs, fixed: Inputs) -> None:
        """Give the features in `fixed` from now on, and prepare no more what they stand for.

        read: the chunk's finished inputs. fixed: the same with features (vembed.model.network.freezing).
        """
        gone = read.tensors.keys() - fixed.tensors.keys()
        if not gone:
            return
        features = {name: tensor for name, tensor in fixed.tensors.items() if name not in read.tensors}
        self._room -= sum(ragged.values.nbytes for name, ragged in features.items() if name in MADE)
        if isinstance(chunk, Inputs):
            if "pixel_values" not in fixed.tensors:  # floats of pictures exist for one chunk only
                self._fixed[id(chunk)] = chunk, fixed
            return
        items, known = self._left.get(chunk, (chunk.items, {}))
        left = [_without(item, text="input_ids" in gone, images="pixel_values" in gone) for item in items]
        self._left[chunk] = left, {**known, **features}
        self._kept.pop(chunk, None)
        if not any(item.images for item in left):
            self._kept[chunk] = fixed  # texts too, of which some were read together with the pictures

    @property
    def num_truncated(self) -> int:
        """Texts that were cut to the model's limit, in all chunks that were prepared here, each counted once."""
        return sum(self._num_truncated.values())


def _without(item: HeldItem, *, text: bool, images: bool) -> HeldItem:
    """The item without its text, its images, or both."""
    kept = None if text else item.text
    if isinstance(item, LoadedItem):
        return replace(item, text=kept, images=() if images else item.images)
    if images:
        return LoadedItem(kept, (), item.content_hash, item.draw, item.origin)
    return replace(item, item=replace(item.item, text=kept))
