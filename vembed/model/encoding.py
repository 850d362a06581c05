"""Many items to embeddings: sorted by length, in batches, images decoded while the model runs."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import concat_rows, map_tensors, move, select_rows
from vembed.model.base import BaseEmbeddingModel, unit_vectors
from vembed.model.processors.base import ItemProcessor
from vembed.model.spec import ModelSpec
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
    """Embeddings of the items, in their order, on the CPU in float32: [items, dim], or [items, tokens, dim] with mask.

    Raises DataError, ModelError.
    """
    if options.width is not None and not 1 <= options.width <= model.dim:
        raise ModelError(f"width {options.width}: this model's embeddings have {model.dim} numbers")
    was_training = model.training
    model.eval()
    try:
        return _encode(model, processor, items, options)
    finally:
        model.train(was_training)


def _encode(
    model: BaseEmbeddingModel, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> Embeddings:
    device = model.logit_scale.device
    forward = model if options.features == "model" else model.tower_features
    order: list[int] = []
    parts: list[Embeddings] = []
    for rows, loaded in _loaded_batches(processor, items, options.batch_size):
        inputs = processor.prepare(loaded, options.side)
        with torch.inference_mode():
            embeddings = _kept(forward(processor.finish(move(inputs, device))), options.width, model.spec)
        order += rows
        parts.append(map_tensors(_float32_on_cpu, embeddings))
    if not parts:
        return _nothing(options.width or model.dim, model.spec)
    if len({part.vectors.shape[-1] for part in parts}) > 1:
        raise ModelError("the towers' own features differ in width; encode texts and images apart")
    return select_rows(concat_rows(parts), torch.tensor(order).argsort())


def _kept(embeddings: Embeddings, width: int | None, spec: ModelSpec) -> Embeddings:
    """The first `width` numbers of each vector, of length 1 again where the model's are."""
    if width is None:
        return embeddings
    vectors = embeddings.vectors[..., :width]
    return Embeddings(unit_vectors(vectors) if spec.normalize else vectors, embeddings.mask)


def _float32_on_cpu(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()


def _nothing(width: int, spec: ModelSpec) -> Embeddings:
    """The embeddings of no items."""
    if spec.scoring == "single":
        return Embeddings(torch.zeros(0, width))
    return Embeddings(torch.zeros(0, 0, width), torch.zeros(0, 0, dtype=torch.bool))


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
