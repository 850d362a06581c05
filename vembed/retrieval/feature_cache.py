"""A cache on disk of the features of frozen towers: each item's are computed once, and read from then on.

    FeatureCache.fill(items)      what no run has computed yet, encoded and written      vembed.retrieval.vector_store
    FeatureCache.processor        gives features in the place of pictures and texts      feature_processor
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

import torch

from vembed.data.hashing import image_hash
from vembed.errors import DataError, ModelError
from vembed.model.encoding import EncodeOptions, encode_readable
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.freezing import fixed_state
from vembed.model.settings import Tower
from vembed.retrieval.feature_processor import FeatureProcessor, text_key
from vembed.retrieval.vector_store import VectorStore
from vembed.types import Item, Side

_log = logging.getLogger(__name__)
_ITEMS_PER_WRITE = 1024
# Fields of a spec that do not change what a tower gives. Prompts are a part of a text's key.
_FIELDS_WITHOUT_EFFECT = {
    "fusion",
    "projection_head",
    "projection_dim",
    "query_prompt",
    "document_prompt",
    "other_prompts",
}
# What tokenizers write of their last call; the spec says how texts are cut and padded here.
_LAST_CALL_KEYS = {
    *("truncation", "padding", "max_length", "stride", "truncation_strategy", "truncation_side"),
    *("pad_to_multiple_of", "pad_token_type_id", "padding_side"),
}


class FeatureCache:
    """The features of the fixed towers of one model, below `folder`. Raises CheckpointError when they are damaged."""

    def __init__(self, model: VisualRetrievalModel, folder: Path) -> None:
        self._model = model
        check_family(model)
        self._stores = {tower: VectorStore(folder / _folder_name(model, tower)) for tower in model.model.fixed_towers()}
        if not self._stores and model.model.freezing.towers:
            raise ModelError(
                "cache_frozen_features: no features of a frozen tower stay the same while the rest learns (a gem"
                " exponent learns within them); take it out, or choose another pooling"
            )
        if not self._stores:
            raise ModelError("nothing that is frozen can be kept of this model; `freeze` its text or vision tower")

    @property
    def processor(self) -> FeatureProcessor:
        """The model's processor, giving features where they are cached."""
        return FeatureProcessor(self._model.processor, self._stores)

    def fill(self, items: Iterable[tuple[Item, Side]]) -> int:
        """Compute and write the features that are not there yet; returns their number.

        An item that cannot be read is left out here, and reported where it is used, as without a cache.
        """
        added = 0
        block: dict[tuple[Tower, int], tuple[Item, Side]] = {}
        for tower, key, item, side in self._slices(items):
            if (tower, key) in block or self._stores[tower].contains([key])[0]:
                continue
            block[tower, key] = (item, side)
            if len(block) == _ITEMS_PER_WRITE:
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
        items, options = [item for _, item in entries], EncodeOptions(side, features="slice")
        features, refused = encode_readable(self._model.model, self._model.processor, items, options)
        kept = [entry for number, entry in enumerate(entries) if number not in refused]
        if kept:
            if tower == "text":
                self._warn_of_truncation([item for _, item in kept], side)
            self._stores[tower].append([key for key, _ in kept], features)
        return len(kept)

    def _warn_of_truncation(self, items: Sequence[Item], side: Side) -> None:
        cut = self._model.processor.prepare(items, side).num_truncated
        if cut:
            _log.warning("%d texts are longer than max_length and were cut before their features were taken", cut)

    def _summary(self) -> str:
        return ", ".join(f"{len(store)} of the {tower} tower kept" for tower, store in self._stores.items())


def check_family(model: VisualRetrievalModel) -> None:
    """Raise ModelError for a model whose features cannot be cached: with a vector per token, or one of sequences."""
    if model.spec.scoring != "single" or not model.model.has_towers_apart:
        raise ModelError(f"of a {model.spec.family} model, what is frozen is kept within a step alone; take it out")


def _folder_name(model: VisualRetrievalModel, tower: Tower) -> str:
    """The folder of a tower's features, named by a hash of its weights and of all that says how it reads."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(fixed_state(model.model, tower).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    spec = model.spec.model_dump(mode="json", exclude=_FIELDS_WITHOUT_EFFECT)
    digest.update(repr(sorted(spec.items())).encode())
    with tempfile.TemporaryDirectory() as folder:
        folders: dict[Tower, Path] = {"text": Path(folder, "text"), "vision": Path(folder, "vision")}
        model.processor.save(folders["text"], folders["vision"])
        for path in sorted(folders[tower].rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + _stable_content(path))
    return f"{tower}-{digest.hexdigest()}"


def _stable_content(path: Path) -> bytes:
    """The bytes of a file; of JSON, without what a tokenizer notes of the last text it was given."""
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_bytes())
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _LAST_CALL_KEYS}
    return json.dumps(content, sort_keys=True).encode()
