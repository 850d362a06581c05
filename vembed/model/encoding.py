"""Many items to embeddings: sorted by length, in batches, images decoded while the model runs."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch

from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import move
from vembed.model.base import BaseEmbeddingModel, unit_vectors
from vembed.model.processors.auto import ItemProcessor
from vembed.types import Embeddings, Item, LoadedItem, Side

Features = Literal["model", "tower"]

_MAX_THREADS = 8


@dataclass(frozen=True)
class EncodeOptions:
    """`width` keeps the first columns only; `tower` features leave added projection heads out."""

    side: Side
    batch_size: int = 64
    width: int | None = None
    features: Features = "model"


def encode_items(
    model: BaseEmbeddingModel, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> Embeddings:
    """Embeddings [items, dim] on the CPU in float32, in the order of the items. Raises DataError, ModelError."""
    if options.width is not None and not 1 <= options.width <= model.dim:
        raise ModelError(f"width {options.width}: this model's embeddings have {model.dim} numbers")
    was_training = model.training
    model.eval()
    try:
        return Embeddings(_encode(model, processor, items, options))
    finally:
        model.train(was_training)


def _encode(
    model: BaseEmbeddingModel, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> torch.Tensor:
    device = model.logit_scale.device
    forward = model if options.features == "model" else model.tower_features
    results: list[tuple[list[int], torch.Tensor]] = []
    for rows, loaded in _loaded_batches(processor, items, options.batch_size):
        inputs = processor.prepare(loaded, options.side)
        with torch.inference_mode():
            vectors = forward(processor.finish(move(inputs, device))).vectors
            if options.width is not None:
                vectors = vectors[:, : options.width]
                vectors = unit_vectors(vectors) if model.spec.normalize else vectors
            results.append((rows, vectors.float().cpu()))
    width = results[0][1].shape[1] if results else (options.width or model.dim)
    if any(vectors.shape[1] != width for _, vectors in results):
        raise ModelError("the towers' own features differ in width; encode texts and images apart")
    embeddings = torch.zeros(len(items), width)
    for rows, vectors in results:
        embeddings[rows] = vectors
    return embeddings


def _batches(items: Sequence[Item], batch_size: int) -> list[list[int]]:
    """Row numbers of each batch: alike in modality, long texts first, so that little is padded."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for row, item in enumerate(items):
        kinds.setdefault((item.text is not None, bool(item.images)), []).append(row)
    batches = []
    for rows in kinds.values():
        rows.sort(key=lambda row: -len(items[row].text or ""))
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches


def _loaded_batches(
    processor: ItemProcessor, items: Sequence[Item], batch_size: int
) -> Iterator[tuple[list[int], list[Item | LoadedItem]]]:
    """Each batch's rows and items; the next batch's images are decoded in threads while this one is embedded."""
    batches = _batches(items, batch_size)
    if not batches:
        return
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:

        def start(rows: list[int]) -> list[Item | Future[LoadedItem]]:
            chosen = [items[row] for row in rows]
            return [pool.submit(processor.load, item) if item.images else item for item in chosen]

        waiting = start(batches[0])
        for rows, following in zip(batches, [*batches[1:], []], strict=True):
            current, waiting = waiting, start(following)
            yield rows, [entry.result() if isinstance(entry, Future) else entry for entry in current]
