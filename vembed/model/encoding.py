"""Many items to embeddings, with little padding, and with images decoded and texts tokenised while the model runs.

items alike in modality, about in order of length     _windows
a window of them, loaded and tokenised once           _prepared       in threads, one window ahead
batches of rows alike in their number of tokens       groups_within
batch -> embeddings, in the order of the items        encode_items
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from vembed.errors import ModelError, UsageError
from vembed.grad_cache.cachex.budget import groups_within
from vembed.grad_cache.cachex.tree_utils import map_tensors, move, select_rows
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.features import slice_features
from vembed.model.processors.base import MAX_THREADS, ItemProcessor
from vembed.model.spec import ModelSpec
from vembed.model.vectors.rows import unit_vectors
from vembed.types import Embeddings, Inputs, Item, LoadedItem, Side

Features = Literal["model", "tower", "slice"]

_TEXT_WINDOW = 16  # batches of texts that are tokenised and put in order together
# Tokens of a batch, padding included. More only leave a CPU's cache; an accelerator needs many to be busy.
_CPU_TOKENS = 2**11
_ACCELERATOR_TOKENS = 2**15


@dataclass(frozen=True)
class EncodeOptions:
    """`width` keeps the first columns only; `tower` features leave added projection heads out.

    `slice` features are those of a tower as the model's heads read them; items are a text or an image then.
    """

    side: Side
    batch_size: int = 64
    width: int | None = None
    features: Features = "model"


@dataclass(frozen=True)
class _Part:
    """Embeddings of some rows, and the place of each among all items, int64 [rows]."""

    places: Tensor
    embeddings: Embeddings


def encode_items(
    model: BaseEmbeddingModel, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> Embeddings:
    """Embeddings of the items, in their order, on the CPU in float32: [items, dim], or [items, tokens, dim] with mask.

    Raises DataError, ModelError, UsageError for a side that there is not: its texts would get the wrong prompt.
    """
    if options.side not in get_args(Side):
        raise UsageError(f"side {options.side!r} is unknown; known are: {', '.join(get_args(Side))}")
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
    forwards: dict[Features, Callable[[Inputs], Embeddings]] = {
        "model": model,
        "tower": model.tower_features,
        "slice": partial(slice_features, model),
    }
    forward = forwards[options.features]
    parts: list[_Part] = []
    tokens_at_once = _CPU_TOKENS if device.type == "cpu" else _ACCELERATOR_TOKENS
    for rows, window in _prepared(processor, items, options):
        for batch in groups_within(processor.num_tokens(window).tolist(), tokens_at_once, most_rows=options.batch_size):
            inputs = processor.without_padding(select_rows(window, torch.tensor(batch)))
            with torch.inference_mode():
                embeddings = _kept(forward(processor.finish(move(inputs, device))), options.width, model.spec)
            places = torch.tensor([rows[number] for number in batch])
            parts.append(_Part(places, map_tensors(_float32_on_cpu, embeddings)))
    if not parts:
        return _nothing(options.width or model.dim, model.spec)
    if len({part.embeddings.vectors.shape[-1] for part in parts}) > 1:
        raise ModelError("the towers' own features differ in width; encode texts and images apart")
    return _table(parts, len(items))


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


def _table(parts: list[_Part], num_items: int) -> Embeddings:
    """All rows in order, padded to the most tokens. Takes the parts away one by one: both would be twice the memory."""
    sizes = [part.embeddings.vectors.shape[1:] for part in parts]
    vectors = torch.zeros(num_items, *(max(size) for size in zip(*sizes, strict=True)))
    mask = torch.zeros(vectors.shape[:2], dtype=torch.bool) if vectors.ndim == 3 else None
    while parts:
        places, own = parts[-1].places, parts.pop().embeddings
        if mask is None:
            vectors[places] = own.vectors
        else:
            vectors[places, : own.vectors.shape[1]] = own.vectors
            mask[places, : own.vectors.shape[1]] = True if own.mask is None else own.mask
    return Embeddings(vectors, mask)


def _windows(items: Sequence[Item], batch_size: int, texts_at_once: int) -> list[list[int]]:
    """Row numbers of each window: alike in modality, long texts first."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for row, item in enumerate(items):
        kinds.setdefault((item.text is not None, bool(item.images)), []).append(row)
    windows = []
    for (_, has_images), rows in kinds.items():
        rows.sort(key=lambda row: -len(items[row].text or ""))
        step = batch_size if has_images else texts_at_once
        windows += [rows[start : start + step] for start in range(0, len(rows), step)]
    return windows


def _prepared(
    processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> Iterator[tuple[list[int], Inputs]]:
    """Each window's rows and inputs; the next window is made in threads while this one is embedded."""
    texts_at_once = options.batch_size * (_TEXT_WINDOW if processor.counts_tokens else 1)
    windows = _windows(items, options.batch_size, texts_at_once)
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as loaders, ThreadPoolExecutor(1) as preparer:

        def start(rows: list[int]) -> Future[Inputs]:
            chosen = [items[row] for row in rows]
            loading = [loaders.submit(processor.load, item) if item.images else item for item in chosen]
            return preparer.submit(finish, loading)

        def finish(loading: list[Item | Future[LoadedItem]]) -> Inputs:
            loaded = [entry.result() if isinstance(entry, Future) else entry for entry in loading]
            return processor.prepare(loaded, options.side)

        waiting = [start(rows) for rows in windows[:1]]
        for number, rows in enumerate(windows, 1):
            waiting += [start(following) for following in windows[number : number + 1]]
            yield rows, waiting.pop(0).result()
