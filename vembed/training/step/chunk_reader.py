"""ChunkReader: prepares the rows of a chunk for its forwards, and keeps between them what need not be done again.

The gradient cache reads each chunk twice (and a reference model once more). Texts are prepared once per step;
rows with pictures for every forward, since their tensors are large. The output of a frozen tower is kept after the
first forward, so that the tower runs once per step: a vector per row always, the hidden states of every token, which
are larger, up to a limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vembed.model.backbones.vision_states import VISION_STATES
from vembed.model.network.features import FEATURES
from vembed.training.step.chunking import Side
from vembed.types import HeldItem, Inputs, ItemRows, LoadedItem, Processor, Ragged

FROZEN_OUTPUTS = frozenset({*FEATURES.values(), VISION_STATES})  # names, in Inputs, of outputs of frozen towers


class ChunkReader:
    """Prepares the chunks of one step. Those without pictures are prepared once and kept, for tokens are small.

    max_hidden_state_bytes: limit of the frozen towers' hidden states that are kept (the last chunk may exceed it).
    """

    def __init__(self, processor: Processor, max_hidden_state_bytes: int = 0) -> None:
        self._processor = processor
        self._room = max_hidden_state_bytes
        self._kept: dict[ItemRows, Inputs] = {}
        self._num_truncated: dict[ItemRows, int] = {}
        # Of each chunk: its items without the texts or images whose features are kept, and those features.
        self._remaining: dict[ItemRows, tuple[Sequence[HeldItem], Mapping[str, Ragged]]] = {}
        self._with_features: dict[
            int, tuple[Inputs, Inputs]
        ] = {}  # by id(chunk), which the held chunk keeps from being another's

    def __call__(self, chunk: Side) -> Inputs:
        """The chunk's prepared inputs, on the host; with kept features, on the features' device.

        After `keep_features` they hold the features in the place of what the frozen towers read.
        """
        if isinstance(chunk, Inputs):
            return self._with_features.get(id(chunk), (chunk, chunk))[1]  # whose texts were counted when they were cut
        if chunk in self._kept:
            return self._kept[chunk]
        items, features = self._remaining.get(chunk, (chunk.items, {}))
        inputs = self._processor.prepare(items, chunk.side)
        self._num_truncated.setdefault(chunk, inputs.num_truncated)
        inputs = replace(inputs, tensors={**inputs.tensors, **features})
        if not any(item.images for item in items):
            self._kept[chunk] = inputs
        return inputs

    @property
    def has_room(self) -> bool:
        """True while hidden states may be kept."""
        return self._room > 0

    def keep_features(self, chunk: Side, inputs: Inputs, with_features: Inputs) -> None:
        """From now on, return the features of frozen towers for this chunk, and do not prepare what these towers read.

        inputs: the chunk's finished inputs. with_features: what `with_fixed_features` made of them.
        """
        replaced = inputs.tensors.keys() - with_features.tensors.keys()
        if not replaced:
            return
        features = {name: tensor for name, tensor in with_features.tensors.items() if name not in inputs.tensors}
        self._room -= sum(ragged.values.nbytes for name, ragged in features.items() if name in FROZEN_OUTPUTS)
        if isinstance(chunk, Inputs):
            if "pixel_values" not in with_features.tensors:  # floats of pictures exist for one chunk only
                self._with_features[id(chunk)] = chunk, with_features
            return
        items, known = self._remaining.get(chunk, (chunk.items, {}))
        remaining = [_without(item, text="input_ids" in replaced, images="pixel_values" in replaced) for item in items]
        self._remaining[chunk] = remaining, {**known, **features}
        self._kept.pop(chunk, None)
        if not any(item.images for item in remaining):
            # The whole inputs, texts included: those of a row with pictures may have been tokenized together with them.
            self._kept[chunk] = with_features

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
