"""A processor that gives the cached features of frozen towers in the place of texts and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import PIL.Image
import torch
from torch import Tensor

from vembed.data.hashing import content_hash, image_hash, mixed_hash
from vembed.errors import ModelError
from vembed.model.folder.find import ModelFolders
from vembed.model.network.features import FEATURES
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec
from vembed.retrieval.vector_store import VectorStore
from vembed.types import AnyItem, HeldItem, ImageTransform, Inputs, Item, LoadedItem, Ragged, Side

_KEY = "feature_key"  # stands in a loaded picture's place: int64 []
Self = TypeVar("Self", bound="FeatureProcessor")


class FeatureProcessor(ItemProcessor):
    """A processor that gives the features of fixed towers where `stores` have them, and else what `inner` gives."""

    def __init__(self, inner: ItemProcessor, stores: Mapping[Tower, VectorStore]) -> None:
        super().__init__(inner.spec, max_image_pixels=inner.max_image_pixels)
        self.token_masks = inner.token_masks
        self._inner = inner
        self._stores = dict(stores)

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "FeatureProcessor":
        """Raises ModelError: a cache is made for a model that is open."""
        raise ModelError("features are kept for a model that is open; see FeatureCache")

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem:
        """As the inner processor's, but that pictures with cached features are neither decoded nor changed."""
        if transform is not None or not item.images or "vision" not in self._stores:
            return self._inner.load(item, transform, draw)
        keys = [image_hash(source) for source in item.images]
        if not self._stores["vision"].contains(keys).all():
            return self._inner.load(item, transform, draw)
        bare = self._inner.load(replace(item, images=())) if item.text is not None else None
        images = tuple({_KEY: torch.tensor(key)} for key in keys)
        return LoadedItem(None if bare is None else bare.text, images, content_hash(item), draw, item.origin)

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """As the inner processor's: a picture without cached features."""
        return self._inner.read_picture(picture)

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows, cached features among them."""
        loaded = self.load_all(items)
        texts, images = self._text_keys(loaded, side), [_image_keys(item) for item in loaded]
        inputs = self._inner.prepare(_without_cached(loaded, texts, images), side)
        given = [inputs]
        if any(texts):
            given.append(Inputs(len(loaded), {FEATURES["text"]: self._features("text", texts)}))
        if any(images):
            given.append(Inputs(len(loaded), {FEATURES["vision"]: self._features("vision", images)}))
        tensors = {name: ragged for one in given for name, ragged in one.tensors.items()}
        return Inputs(len(loaded), tensors, sum(one.num_truncated for one in given))

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]:
        """Tokens of each row that a tower has to read; what is cached counts for nothing."""
        loaded = self.load_all(items)
        images = [_image_keys(item) for item in loaded]
        return self._inner.count_tokens(_without_cached(loaded, self._text_keys(loaded, side), images), side)

    def finish(self, inputs: Inputs) -> Inputs:
        """As the inner processor's; features are finished already."""
        return self._inner.finish(inputs)

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the inner processor's files."""
        self._inner.save(text_folder, image_folder)

    def is_read_alike_elsewhere(self) -> bool:
        """As the inner processor's."""
        return self._inner.is_read_alike_elsewhere()

    def with_image_limit(self: Self, max_image_pixels: int) -> Self:
        """The same, refusing images of more pixels that are not known yet."""
        return type(self)(self._inner.with_image_limit(max_image_pixels), self._stores)

    def _text_keys(self, loaded: Sequence[LoadedItem], side: Side) -> list[list[int]]:
        """The key of each row's text, no key for rows whose text has no cached features."""
        if "text" not in self._stores:
            return [[] for _ in loaded]
        prompt = self.spec.prompt(side)
        keys = [0 if item.text is None else text_key(prompt, item.text) for item in loaded]
        known = self._stores["text"].contains(keys).tolist()
        return [
            [key] if is_known and item.text is not None else []
            for key, is_known, item in zip(keys, known, loaded, strict=True)
        ]

    def _features(self, tower: Tower, keys: Sequence[Sequence[int]]) -> Ragged:
        """The cached features of the texts or pictures with these keys; one entry of `keys` is a row."""
        vectors = self._stores[tower].read([key for row in keys for key in row]).vectors
        return Ragged(vectors, torch.tensor([len(row) for row in keys]))


def text_key(prompt: str, text: str) -> int:
    """The key of a text's features: of its words and the prompt before them."""
    return mixed_hash(prompt, text)


def _without_cached(
    loaded: Sequence[LoadedItem], texts: Sequence[Sequence[int]], images: Sequence[Sequence[int]]
) -> list[LoadedItem]:
    """The items without the texts and pictures that have keys, which the inner processor need not see."""
    return [
        replace(item, text=None if text else item.text, images=() if keys else item.images)
        for item, text, keys in zip(loaded, texts, images, strict=True)
    ]


def _image_keys(item: LoadedItem) -> list[int]:
    """The keys of a row's pictures, none if they were decoded."""
    return [int(image[_KEY]) for image in item.images if _KEY in image]
