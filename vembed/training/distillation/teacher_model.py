"""A teacher model for distillation, whose embeddings of all training items are computed once and kept on disk.

    TeacherModel.fill(items)            embeds and writes the items that no run has embedded yet
    TeacherModel.embeddings(batch)      reads the embeddings of a batch's items, by content hash

    cache/<fingerprint of the teacher>-<dtype>/teacher.json       spec, dim and temperature: known without its weights
                                               /query, /document  a vembed.retrieval.vector_store by content hash

The weights are opened only to embed what is missing, and are freed before training begins.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vembed.data.hashing import content_hash
from vembed.errors import CheckpointError, ConfigError, DataError, ModelError
from vembed.losses.objective import Teacher, scale_of
from vembed.model.detect import detect
from vembed.model.encoding import EncodeOptions, encode_readable
from vembed.model.families.registry import hub_id
from vembed.model.folder.find import weights_folder
from vembed.model.folder.fingerprint import embedding_fingerprint
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.retrieval.encode import canonical_side, refuse_not_finite
from vembed.retrieval.vector_store import VectorStore
from vembed.scoring import get_scorer
from vembed.training.distillation.taught_processor import TaughtProcessor
from vembed.training.distillation.teacher_facts import TeacherFacts, read_teacher_facts, write_teacher_facts
from vembed.training.frozen_features import ItemSides
from vembed.training.rng import preserve_rng
from vembed.types import Batch, Embeddings, Item, Processor, Side, Sides

_log = logging.getLogger(__name__)
# Items that are embedded before they are written, by kind of scoring: what an interruption costs.
_BLOCK_SIZES = {"single": 1024, "maxsim": 128}
_SECONDS_BETWEEN_LINES = 30


@dataclass(frozen=True)
class TeacherOptions:
    """How a teacher is run. settings: trust_remote_code and the like for opening it, and the dtype of its weights."""

    settings: ModelSettings
    device: torch.device
    batch_size: int
    max_image_pixels: int


class TeacherModel:
    """The model called `name`, with its embeddings below `cache`. Raises ConfigError when there is no such model."""

    def __init__(self, name: str, cache: Path, options: TeacherOptions) -> None:
        self.name = name
        self._options = options
        try:
            spec = detect(name, options.settings).spec
            self.fingerprint = embedding_fingerprint(weights_folder(hub_id(name), options.settings), spec)
        except (ModelError, CheckpointError) as error:
            raise ConfigError(f"teacher_model_name: {error}") from error
        self._folder = cache / f"{self.fingerprint.removeprefix('sha256:')[:32]}-{options.settings.torch_dtype}"
        self.facts = read_teacher_facts(self._folder, spec) or self._open_facts()
        sides: tuple[Side, ...] = ("query", "document")
        folders = {side: canonical_side(spec, side) for side in sides}
        stores = {folder: VectorStore(self._folder / folder) for folder in sorted(set(folders.values()))}
        self._stores = {side: stores[folder] for side, folder in folders.items()}
        self._refused: dict[int, str] = {}  # content hash -> why it cannot read the item

    @property
    def teacher(self) -> Teacher:
        """Scorer, temperature and dim, with which the loss turns its embeddings into scores."""
        spec = self.facts.spec
        return Teacher(get_scorer(spec.similarity, spec.scoring), self.facts.temperature, self.facts.dim)

    def check_mode(self, retrieval_mode: str) -> None:
        """Raise ConfigError when it cannot embed both sides of the retrieval mode."""
        spec = self.facts.spec
        if not spec.supports_mode(retrieval_mode):
            raise ConfigError(
                f"teacher_model_name: {self.name} is a {spec.family} model, which reads {spec.reads()}, and cannot"
                f" teach retrieval_mode {retrieval_mode}"
            )

    def fill(self, items: ItemSides) -> int:
        """Embed and write the items that are not there yet; returns their number.

        An item that cannot be read is left out, and is a bad sample where a row names it: see `reading`. Raises
        ModelError for an item that the teacher cannot take.
        """
        added, last_logged = 0, time.monotonic()
        write_teacher_facts(self._folder, self.name, self.facts)
        model: VisualRetrievalModel | None = None
        for side, block in self._missing(items):
            model = self._open() if model is None else model  # not opened at all where nothing is missing
            added += self._embed(model, block, side)
            if time.monotonic() - last_logged > _SECONDS_BETWEEN_LINES:
                _log.info("teacher %s: %d items embedded so far", self.name, added)
                last_logged = time.monotonic()
        num_kept = sum(len(store) for store in set(self._stores.values()))
        _log.info("teacher %s: %d items embedded, %d kept in %s", self.name, added, num_kept, self._folder)
        return added

    def reading(self, processor: Processor) -> Processor:
        """The student's processor, refusing what the teacher could not read when `fill` gave it to it."""
        return TaughtProcessor(processor, self.name, self._refused)

    def summary(self) -> str:
        """Its family, dim and name, in words."""
        spec = self.facts.spec
        per = "token" if spec.scoring == "maxsim" else "item"
        return f"{spec.family}, {self.facts.dim} numbers per {per} ({self.name})"

    def embeddings(self, batch: Batch) -> Sides:
        """Its embeddings of the batch, [rows, dim] or [rows, tokens, dim] with mask, on the CPU.

        Raises DataError for rows of which it has none.
        """
        keys: dict[Side, Tensor] = {"query": batch.targets.query_hashes, "document": batch.targets.document_hashes}
        return Sides(*(self._rows(side, hashes, batch.origins) for side, hashes in keys.items()))

    def _rows(self, side: Side, hashes: Tensor, origins: Sequence[str]) -> Embeddings:
        store, keys = self._stores[side], hashes.cpu().numpy()
        known = store.contains(keys)
        if not known.all():
            first = f" (the first row is {origins[0]})" if origins else ""
            raise DataError(
                f"the teacher {self.name} could not read {int((~known).sum())} of the {len(keys)} {side} items of a"
                f" batch{first}; mend their rows, or leave them out"
            )
        return store.read(keys)

    def _missing(self, items: ItemSides) -> Iterator[tuple[Side, Mapping[int, Item]]]:
        """Blocks of items that are not in their side's store, by content hash."""
        sides = {side: canonical_side(self.facts.spec, side) for side in self._stores}
        blocks: dict[Side, dict[int, Item]] = {side: {} for side in sides.values()}
        size = _BLOCK_SIZES[self.facts.spec.scoring]
        for item, its_side in items:
            side = sides[its_side]
            try:
                key = content_hash(item)
            except DataError:  # it cannot be read: see `fill`
                continue
            block = blocks[side]
            if key not in block and not self._stores[side].contains([key])[0]:
                block[key] = item
            if len(block) == size:
                yield side, dict(block)
                block.clear()
        yield from ((side, block) for side, block in blocks.items() if block)

    def _embed(self, model: VisualRetrievalModel, block: Mapping[int, Item], side: Side) -> int:
        """Embed and write a block, without the items that cannot be read; returns how many are written."""
        keys, items = list(block), list(block.values())
        options = EncodeOptions(side, self._options.batch_size)
        embeddings, refused = encode_readable(model.model, model.processor, items, options)
        for number, error in refused.items():
            _log.warning("the teacher cannot read an item: %s", error)
            self._refused[keys[number]] = str(error)
        kept = [number for number in range(len(items)) if number not in refused]
        if kept:
            refuse_not_finite(embeddings, [items[number] for number in kept])
            self._stores[side].append([keys[number] for number in kept], embeddings)
        return len(kept)

    def _open(self) -> VisualRetrievalModel:
        # A run that finds all embeddings on disk does not open the teacher, and must draw the same random numbers.
        with preserve_rng():
            model = VisualRetrievalModel.from_pretrained(self.name, self._options.settings)
        model.model.requires_grad_(False).to(self._options.device)
        return model.with_image_limit(self._options.max_image_pixels)

    def _open_facts(self) -> TeacherFacts:
        model = self._open().model
        return TeacherFacts(model.spec, model.dim, 1 / scale_of(model.logit_scale).item())
