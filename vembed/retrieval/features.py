"""Features of fixed towers on disk: what a frozen tower gives for an item is computed once, and read from then on.

    FeatureCache.fill(items)      what no run has computed yet, encoded and written      vembed.retrieval.vector_store
    FeatureCache.processor        gives features in the place of pictures and texts      FeatureProcessor
    model(inputs)                 goes on from them                                      BaseEmbeddingModel

A picture is known by its bytes, a text by its words and prompt, and a tower by its weights and by how it reads: any
change of them is a folder of its own, so that nothing is ever read that the tower would not give.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import PIL.Image
import torch
from torch import Tensor

from vembed.data.hashing import content_hash, image_hash, mixed_hash
from vembed.errors import DataError, ModelError
from vembed.model.base import FEATURES
from vembed.model.encoding import EncodeOptions, encode_items
from vembed.model.files import ModelFolders
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.processors.base import ItemProcessor
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec
from vembed.retrieval.vector_store import VectorStore
from vembed.types import AnyItem, HeldItem, ImageTransform, Inputs, Item, LoadedItem, Ragged, Side

_log = logging.getLogger(__name__)
_AT_ONCE = 1024  # items that are encoded before they are written
_KEY = "feature_key"  # stands in a loaded picture's place: int64 []
# What of a spec does not change what a tower gives. Prompts are a part of a text's key.
_BESIDE = {"fusion", "projection_head", "projection_dim", "query_prompt", "document_prompt", "other_prompts"}
# What tokenizers write of their last call; the spec says how texts are cut and padded here.
_PASSING = {
    *("truncation", "padding", "max_length", "stride", "truncation_strategy", "truncation_side"),
    *("pad_to_multiple_of", "pad_token_type_id", "padding_side"),
}
Self = TypeVar("Self", bound="FeatureProcessor")


class FeatureCache:
    """The features of the fixed towers of one model, below `folder`. Raises CheckpointError when they are damaged."""

    def __init__(self, model: VisualRetrievalModel, folder: Path) -> None:
        self._model = model
        towers = model.model.fixed_towers()
        if not towers:
            raise ModelError("there is no frozen tower whose features could be kept; `freeze` one of text and vision")
        self._stores = {tower: VectorStore(folder / _name(model, tower)) for tower in towers}

    @property
    def processor(self) -> "FeatureProcessor":
        """The model's processor, giving features where they are known."""
        return FeatureProcessor(self._model.processor, self._stores)

    def fill(self, items: Iterable[tuple[Item, Side]]) -> int:
        """Compute and write the features that are not there yet; gives how many those are.

        An item that cannot be read is left out: where it is used, it is told of as without a cache.
        """
        added = 0
        block: dict[tuple[Tower, int], tuple[Item, Side]] = {}
        for tower, key, item, side in self._slices(items):
            if (tower, key) in block or self._stores[tower].contains([key])[0]:
                continue
            block[tower, key] = (item, side)
            if len(block) == _AT_ONCE:
                added += self._write(block)
                block.clear()
        added += self._write(block)
        _log.info("features of frozen towers: %d computed, %s", added, self._summary())
        return added

    def _slices(self, items: Iterable[tuple[Item, Side]]) -> Iterator[tuple[Tower, int, Item, Side]]:
        """Every text and picture that a fixed tower reads, as an item of its own."""
        spec = self._model.spec
        for item, side in items:
            if item.text is not None and "text" in self._stores:
                yield "text", text_key(spec.prompt(side), item.text), replace(item, images=()), side
            for source in item.images if "vision" in self._stores else ():
                try:
                    yield "vision", image_hash(source), Item(images=(source,), origin=item.origin), side
                except DataError:
                    continue

    def _write(self, block: Mapping[tuple[Tower, int], tuple[Item, Side]]) -> int:
        added = 0
        for tower in self._stores:
            for side in ("query", "document"):
                entries = [(key, item) for (of, key), (item, its) in block.items() if of == tower and its == side]
                added += self._encode(tower, entries, side) if entries else 0
        return added

    def _encode(self, tower: Tower, entries: Sequence[tuple[int, Item]], side: Side) -> int:
        keys, items = [key for key, _ in entries], [item for _, item in entries]
        try:
            features = encode_items(
                self._model.model, self._model.processor, items, EncodeOptions(side, features="slice")
            )
        except DataError:
            if len(entries) == 1:
                return 0
            return sum(self._encode(tower, [entry], side) for entry in entries)
        if tower == "text":
            self._warn_of_cut(items, side)
        self._stores[tower].append(keys, features)
        return len(keys)

    def _warn_of_cut(self, items: Sequence[Item], side: Side) -> None:
        cut = self._model.processor.prepare(items, side).num_truncated
        if cut:
            _log.warning("%d texts are longer than max_length and were cut before their features were taken", cut)

    def _summary(self) -> str:
        return ", ".join(f"{len(store)} of the {tower} tower kept" for tower, store in self._stores.items())


class FeatureProcessor(ItemProcessor):
    """A processor that gives the features of fixed towers where `stores` have them, and else what `inner` gives."""

    def __init__(self, inner: ItemProcessor, stores: Mapping[Tower, VectorStore]) -> None:
        super().__init__(inner.spec, max_image_pixels=inner.max_image_pixels)
        self.token_masks = inner.token_masks
        self._inner = inner
        self._stores = dict(stores)

    @classmethod
    def from_folders(cls, spec: ModelSpec, folders: ModelFolders, settings: ModelSettings) -> "FeatureProcessor":
        """Not there: a cache is made for a model that is open."""
        raise ModelError("features are kept for a model that is open; see FeatureCache")

    def load(self, item: Item, transform: ImageTransform | None = None, draw: int = 0) -> LoadedItem:
        """As the inner one, but that pictures with features are neither decoded nor changed."""
        if transform is not None or not item.images or "vision" not in self._stores:
            return self._inner.load(item, transform, draw)
        keys = [image_hash(source) for source in item.images]
        if not self._stores["vision"].contains(keys).all():
            return self._inner.load(item, transform, draw)
        bare = self._inner.load(replace(item, images=())) if item.text is not None else None
        images = tuple({_KEY: torch.tensor(key)} for key in keys)
        return LoadedItem(None if bare is None else bare.text, images, content_hash(item), draw, item.origin)

    def read_picture(self, picture: PIL.Image.Image) -> Mapping[str, Tensor]:
        """As the inner one: a picture that is not known yet."""
        return self._inner.read_picture(picture)

    def prepare(self, items: Sequence[AnyItem], side: Side) -> Inputs:
        """Inputs of these rows, features among them."""
        loaded = self.load_all(items)
        texts, images = self._text_keys(loaded, side), [_image_keys(item) for item in loaded]
        inputs = self._inner.prepare(_without_known(loaded, texts, images), side)
        keys_of: dict[Tower, list[list[int]]] = {"text": texts, "vision": images}
        given = {FEATURES[tower]: self._given(tower, keys) for tower, keys in keys_of.items()}
        return replace(
            inputs, tensors={**inputs.tensors, **{name: ragged for name, ragged in given.items() if ragged is not None}}
        )

    def count_tokens(self, items: Sequence[HeldItem], side: Side) -> list[int]:
        """As the inner one; features count for nothing."""
        loaded = self.load_all(items)
        texts, images = self._text_keys(loaded, side), [_image_keys(item) for item in loaded]
        return self._inner.count_tokens(_without_known(loaded, texts, images), side)

    def finish(self, inputs: Inputs) -> Inputs:
        """As the inner one; features are finished."""
        return self._inner.finish(inputs)

    def save(self, text_folder: Path, image_folder: Path) -> None:
        """Write the inner processor's files."""
        self._inner.save(text_folder, image_folder)

    def is_read_alike_elsewhere(self) -> bool:
        """As the inner one."""
        return self._inner.is_read_alike_elsewhere()

    def with_image_limit(self: Self, max_image_pixels: int) -> Self:
        """The same, refusing images of more pixels that are not known yet."""
        return type(self)(self._inner.with_image_limit(max_image_pixels), self._stores)

    def _text_keys(self, loaded: Sequence[LoadedItem], side: Side) -> list[list[int]]:
        """The key of each row's text, nothing for rows without features of their text."""
        if "text" not in self._stores:
            return [[] for _ in loaded]
        prompt = self.spec.prompt(side)
        keys = [0 if item.text is None else text_key(prompt, item.text) for item in loaded]
        known = self._stores["text"].contains(keys).tolist()
        return [
            [key] if is_known and item.text is not None else []
            for key, is_known, item in zip(keys, known, loaded, strict=True)
        ]

    def _given(self, tower: Tower, keys: Sequence[Sequence[int]]) -> Ragged | None:
        """The features of these keys per row; None when there are none."""
        flat = [key for row in keys for key in row]
        if not flat:
            return None
        return Ragged(self._stores[tower].read(flat).vectors, torch.tensor([len(row) for row in keys]))


def text_key(prompt: str, text: str) -> int:
    """What a text is known by."""
    return mixed_hash(prompt, text)


def _without_known(
    loaded: Sequence[LoadedItem], texts: Sequence[Sequence[int]], images: Sequence[Sequence[int]]
) -> list[LoadedItem]:
    """The items without texts and pictures that have keys, which the inner processor need not see."""
    return [
        replace(item, text=None if text else item.text, images=() if keys else item.images)
        for item, text, keys in zip(loaded, texts, images, strict=True)
    ]


def _image_keys(item: LoadedItem) -> list[int]:
    """The keys of a row's pictures, nothing where they were decoded."""
    return [int(image[_KEY]) for image in item.images if _KEY in image]


def _name(model: VisualRetrievalModel, tower: Tower) -> str:
    """The folder of a tower's features: by its weights, and by all that says how it reads."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.model.tower_state(tower).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    spec = model.spec.model_dump(mode="json", exclude=_BESIDE)
    digest.update(repr(sorted(spec.items())).encode())
    with tempfile.TemporaryDirectory() as folder:
        folders: dict[Tower, Path] = {"text": Path(folder, "text"), "vision": Path(folder, "vision")}
        model.processor.save(folders["text"], folders["vision"])
        for path in sorted(folders[tower].rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + _lasting(path))
    return f"{tower}-{digest.hexdigest()}"


def _lasting(path: Path) -> bytes:
    """What a file says, without what a tokenizer notes of the last text it was given."""
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_bytes())
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _PASSING}
    return json.dumps(content, sort_keys=True).encode()
