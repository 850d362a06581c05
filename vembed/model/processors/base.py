"""The one base of all processors: items in, a model's inputs out."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image
import torch
from torch import Tensor

from vembed.data.hashing import content_hash
from vembed.data.images import place_of, read_image
from vembed.errors import DataError, ModelError
from vembed.model.folder.find import ModelFolders
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import AnyItem, EncodedItem, HeldItem, ImageSource, ImageTransform, Inputs, Item, LoadedItem, Side
from vembed.utils.untrusted import library_errors

MAX_IMAGE_PIXELS = 100_000_000
MAX_THREADS = 8  # that decode pictures
_COUNTED_AT_ONCE = 256  # texts
Self = TypeVar("Self", bound="ItemProcessor")


class ItemProcessor(ABC):
    """Turns items into a model's inputs, in three steps that can run in three places (`vembed.types.Processor`).

    A family overrides `from_folders`, `read_picture` (or `read_pictures`), `prepare`, `finish` and `save`; it may
    override `check`, `check_loaded`, `counts_tokens`, `num_tokens`, `count_tokens` and `is_read_alike_elsewhere`.
    token_masks: names of the masks [texts, tokens] that `prepare` pads along with `input_ids`; then many texts are
    tokenised at once, and embedded in batches of about one length. reads_pictures_together: all pictures of an item are
    one entry of what `load` gives.
    """

    token_masks: tuple[str, ...] = ()
    reads_pictures_together = False
    placeholder_ids: Sequence[int] = ()  # tokens that stand for an image
    unreadable_tokens: Sequence[str] = ()  # words of the tokenizer that the model has no row for

    def __init__(self, spec: ModelSpec, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> None:
        self.spec = spec
        self.max_image_pixels = max_image_pixels

    @classmethod
    @abstractmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "ItemProcessor":
        """The processor that the folders hold. Raises ModelError when its files are missing."""

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """The tensors of one RGB picture, by name, at the model's size and in uint8."""
        return self.read_pictures([picture])

    def read_pictures(self, pictures: Sequence[PIL.Image.Image]) -> Mapping[str, Tensor]:
        """The tensors of one entry: all pictures of an item with `reads_pictures_together`, else a single one."""
        assert not self.reads_pictures_together, f"{type(self).__name__} does not override read_pictures"
        (picture,) = pictures
        return self.read_picture(picture)

    @abstractmethod
    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows: texts tokenised, images still uint8."""

    @abstractmethod
    def finish(self, inputs: Inputs) -> Inputs:
        """The same inputs with float32 pixels, rescaled and normalised; to be called on the device, per chunk."""

    @abstractmethod
    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the files that `from_folders` and transformers read."""

    @property
    def tokenizer(self) -> Any:  # Any: transformers is untyped here
        """The tokenizer; None for a processor of images alone, or one that keeps it to itself."""
        return None

    def is_read_alike_elsewhere(self) -> bool:
        """True if sentence-transformers makes the same inputs with the files that `save` writes."""
        return True

    @property
    def counts_tokens(self) -> bool:
        """True if `num_tokens` counts each row's tokens, and `without_padding` can shorten rows prepared together."""
        return bool(self.token_masks)

    def num_tokens(self, inputs: Inputs) -> Tensor:
        """Tokens of each row's texts without padding, int64 [rows]; zeros where they are not counted."""
        counted = torch.zeros(inputs.num_rows, dtype=torch.int64)
        real = self._real_tokens(inputs)
        if real is None:
            return counted
        rows = torch.repeat_interleave(torch.arange(inputs.num_rows), inputs.tensors["input_ids"].counts)
        return counted.index_add(0, rows, real.sum(dim=1))

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]:
        """Tokens of each row without padding: of its text, and of its images.

        Nothing is kept: rows of text are tokenised many at a time, rows with images one by one.
        """
        counts = [0] * len(items)
        for rows in _windows(items):
            inputs = self.prepare([items[row] for row in rows], side)
            for row, count in zip(rows, self._row_lengths(inputs).tolist(), strict=True):
                counts[row] = count
        return counts

    def _row_lengths(self, inputs: Inputs) -> Tensor:
        """Tokens of each row, int64 [rows]; with padding if the model attends to it."""
        if self.counts_tokens or "input_ids" not in inputs.tensors:
            return self.num_tokens(inputs)
        texts = inputs.tensors["input_ids"]
        return texts.counts * texts.values.shape[1]

    def without_padding(self, inputs: Inputs) -> Inputs:
        """The same inputs without the columns that are padding in all of their texts."""
        real = self._real_tokens(inputs)
        if real is None:
            return inputs
        names = [name for name in ("input_ids", *self.token_masks) if name in inputs.tensors]
        padded = {name: inputs.tensors[name] for name in names}
        columns = real.any(dim=0)
        shorter = {name: replace(ragged, values=ragged.values[:, columns]) for name, ragged in padded.items()}
        return replace(inputs, tensors={**inputs.tensors, **shorter})

    def _real_tokens(self, inputs: Inputs) -> Tensor | None:
        """Bool [texts, tokens], True for tokens in any of the masks; None without masks, or texts."""
        masks = [inputs.tensors[name].values.bool() for name in self.token_masks if name in inputs.tensors]
        return torch.stack(masks).any(dim=0) if masks else None

    def with_image_limit(self: Self, max_image_pixels: int) -> Self:
        """The same processor, refusing images of more pixels."""
        limited = copy.copy(self)
        limited.max_image_pixels = max_image_pixels
        return limited

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem:
        """Decode and transform an item's images, and read each to the model's tensors.

        Raises DataError for an image that cannot be read, ModelError for an item that the model cannot read.
        """
        self.check(item)
        together = [item.images] if self.reads_pictures_together else [(source,) for source in item.images]
        images = tuple(self._read(item, sources, transform) for sources in together if sources)
        loaded = LoadedItem(item.text, images, content_hash(item), draw, item.origin)
        self.check_loaded(loaded)
        return loaded

    def load_all(self, items: Sequence[AnyItem]) -> list[LoadedItem]:
        """The items, loaded; encoded images are decoded in threads."""
        if not any(isinstance(item, EncodedItem) for item in items):
            return [self._load_if_needed(item) for item in items]
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
            return list(threads.map(self._load_if_needed, items))

    def _load_if_needed(self, item: AnyItem) -> LoadedItem:
        if isinstance(item, LoadedItem):
            return item
        if isinstance(item, Item):
            return self.load(item)
        return self.load(item.item, item.transform, item.draw)

    def _read(
        self, item: Item, sources: Sequence[ImageSource], transform: ImageTransform | None
    ) -> Mapping[str, Tensor]:
        """Tensors of one entry: of a picture, or of all of an item's where the model reads them together.

        What the libraries that resize and cut them raise is a DataError, as there are shapes that they refuse.
        """
        pictures = [read_image(source, max_pixels=self.max_image_pixels) for source in sources]
        with library_errors(
            DataError, f"{_place_of_all(item, sources)}an image cannot be read by this model", or_too_large=True
        ):
            pictures = pictures if transform is None else [transform(picture) for picture in pictures]
            return self.read_pictures(pictures)

    def check(self, item: Item) -> None:
        """Raise DataError or ModelError for an item that no model, or not this one, can read by what it says."""
        where = f"{item.origin}: " if item.origin else ""
        if item.text is None and not item.images:
            raise DataError(f"{where}an item needs a text, an image, or both")
        if item.text is not None and not _is_unicode(item.text):
            raise DataError(f"{where}the text holds half a character (a lone surrogate), which no tokenizer can read")
        _refuse_tokens(item.text, self.unreadable_tokens, where)
        spec = self.spec
        if (item.text is not None and not spec.supports(["text"])) or (item.images and not spec.supports(["image"])):
            given = "a text" if not spec.supports(["text"]) else "an image"
            raise ModelError(f"{where}a {spec.family} model reads {spec.reads()}; it was given {given}")

    def check_loaded(self, item: LoadedItem) -> None:  # noqa: B027 (most models have no more to check)
        """Raise DataError for pictures that this model cannot read together, such as more tokens than max_length.

        `prepare` refuses them too, but only when the item is in a batch with others. To be overridden.
        """


def _place_of_all(item: Item, sources: Sequence[ImageSource]) -> str:
    place = place_of(sources[0]) or (f"{item.origin}: " if item.origin else "")
    others = f"or another of the item's {len(sources)} images: " if len(sources) > 1 else ""
    return f"{place}{others}"


def _refuse_tokens(text: str | None, tokens: Sequence[str], where: str) -> None:
    """Raise DataError for a text that spells one of these tokens, however its letters are written."""
    found = [token for token in tokens if text is not None and token.lower() in text.lower()]
    if found:
        raise DataError(f"{where}the text holds {found[0]!r}, a token that this model has no embedding of")


def _windows(items: Sequence[HeldItem]) -> list[list[int]]:
    """Row numbers of items to be prepared at once: texts of about one length; each item with images alone."""
    texts = sorted(
        (row for row, item in enumerate(items) if not item.images), key=lambda row: len(items[row].text or "")
    )
    windows = [texts[start : start + _COUNTED_AT_ONCE] for start in range(0, len(texts), _COUNTED_AT_ONCE)]
    return windows + [[row] for row, item in enumerate(items) if item.images]


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
