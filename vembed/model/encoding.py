"""Many items to embeddings, with little padding, and with images decoded and texts tokenised while the model runs.

items of one modality, about in order of length       _windows
a window of them, loaded and tokenised at once        _PreparedItems  in threads, one window ahead
batches of rows of about one number of tokens         groups_within
batch -> embeddings, in the order of the items        encode_items
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from vembed.errors import DataError, ModelError, UsageError
from vembed.grad_cache.cachex.budget import groups_within
from vembed.grad_cache.cachex.tree_utils import map_tensors, move, select_rows
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.features import slice_features
from vembed.model.processors.base import MAX_THREADS, ItemProcessor
from vembed.model.spec import ModelSpec
from vembed.model.vectors.rows import unit_vectors
from vembed.types import AnyItem, Embeddings, Inputs, Item, LoadedItem, Side

Features = Literal["model", "tower", "slice"]

_TEXT_WINDOW = 16  # batches of texts that are tokenised and sorted by length together
# Tokens of a batch, padding included: few fit a CPU's cache, an accelerator is busy only with many.
_CPU_TOKENS = 2**11
_ACCELERATOR_TOKENS = 2**15


@dataclass(frozen=True)
class EncodeOptions:
    """width: keep only the first numbers of each vector (Matryoshka). features: `model` gives the model's embeddings.

    `tower` leaves out projection heads that were added to pretrained towers; `slice` gives a tower's outputs before all
    heads, for items that are a text or an image. count_cut: is given, now and then, how many more texts were cut.
    """

    side: Side
    batch_size: int = 64
    width: int | None = None
    features: Features = "model"
    count_cut: Callable[[int], object] = int


@dataclass(frozen=True)
class _EncodedBatch:
    """Embeddings of a batch, and its row numbers among all items, int64 [rows]."""

    rows: Tensor
    embeddings: Embeddings


def encode_items(
    model: BaseEmbeddingModel, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> Embeddings:
    """Embeddings of the items, in their order, on the CPU in float32: [items, dim], or [items, tokens, dim] with mask.

    Raises DataError, ModelError; UsageError for an unknown side, whose texts would get the wrong prompt.
    """
    return _encode(model, _PreparedItems(processor, items, options))


def encode_readable(
    model: BaseEmbeddingModel, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions
) -> tuple[Embeddings, dict[int, DataError]]:
    """As `encode_items`, of the items that can be read; and for the numbers of the others, why they cannot be."""
    prepared = _ReadableItems(processor, items, options)
    embeddings = _encode(model, prepared)
    if not prepared.refused:
        return embeddings, {}
    kept = torch.tensor([row for row in range(len(items)) if row not in prepared.refused], dtype=torch.int64)
    return map_tensors(lambda tensor: tensor[kept] if len(tensor) else tensor, embeddings), prepared.refused


def _encode(model: BaseEmbeddingModel, prepared: "_PreparedItems") -> Embeddings:
    """A row for every item; of those that are not given, zeros, or none where none is given."""
    options = prepared.options
    if options.side not in get_args(Side):
        raise UsageError(f"side {options.side!r} is unknown; known are: {', '.join(get_args(Side))}")
    if options.width is not None and not 1 <= options.width <= model.dim:
        raise ModelError(f"width {options.width}: this model's embeddings have {model.dim} numbers")
    was_training = model.training
    model.eval()
    try:
        batches = list(_encoded_batches(model, prepared))
    finally:
        model.train(was_training)
    if not batches:
        return _no_embeddings(options.width or model.dim, model.spec)
    if len({one.embeddings.vectors.shape[-1] for one in batches}) > 1:
        raise ModelError("the towers' own features differ in width; encode texts and images apart")
    return _in_order(batches, len(prepared.items))


def _encoded_batches(model: BaseEmbeddingModel, prepared: "_PreparedItems") -> Iterator[_EncodedBatch]:
    options, processor = prepared.options, prepared.processor
    device = model.logit_scale.device
    forwards: dict[Features, Callable[[Inputs], Embeddings]] = {
        "model": model,
        "tower": model.tower_features,
        "slice": partial(slice_features, model),
    }
    forward = forwards[options.features]
    tokens_at_once = _CPU_TOKENS if device.type == "cpu" else _ACCELERATOR_TOKENS
    with closing(prepared.windows()) as windows:  # an error here must not wait for the pictures of the next window
        for rows_of_window, window in windows:
            groups = groups_within(processor.num_tokens(window).tolist(), tokens_at_once, most_rows=options.batch_size)
            for batch in groups:
                inputs = processor.without_padding(select_rows(window, torch.tensor(batch)))
                with torch.inference_mode():
                    embeddings = _truncated(forward(processor.finish(move(inputs, device))), options.width, model.spec)
                rows = torch.tensor([rows_of_window[number] for number in batch])
                yield _EncodedBatch(rows, map_tensors(_float32_on_cpu, embeddings))


def _truncated(embeddings: Embeddings, width: int | None, spec: ModelSpec) -> Embeddings:
    """The first `width` numbers of each vector, of length 1 again if the model normalises; None: as they are."""
    if width is None:
        return embeddings
    vectors = embeddings.vectors[..., :width]
    return Embeddings(unit_vectors(vectors) if spec.normalize else vectors, embeddings.mask)


def _float32_on_cpu(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()


def _no_embeddings(width: int, spec: ModelSpec) -> Embeddings:
    """Embeddings of no items, [0, width] or [0, 0, width]."""
    if spec.scoring == "single":
        return Embeddings(torch.zeros(0, width))
    return Embeddings(torch.zeros(0, 0, width), torch.zeros(0, 0, dtype=torch.bool))


def _in_order(batches: list[_EncodedBatch], num_items: int) -> Embeddings:
    """All rows in the order of items, padded to the most tokens. Empties the list on the way, to save memory."""
    sizes = [one.embeddings.vectors.shape[1:] for one in batches]
    vectors = torch.zeros(num_items, *(max(size) for size in zip(*sizes, strict=True)))
    mask = torch.zeros(vectors.shape[:2], dtype=torch.bool) if vectors.ndim == 3 else None
    while batches:
        rows, own = batches[-1].rows, batches.pop().embeddings
        if mask is None:
            vectors[rows] = own.vectors
        else:
            vectors[rows, : own.vectors.shape[1]] = own.vectors
            mask[rows, : own.vectors.shape[1]] = True if own.mask is None else own.mask
    return Embeddings(vectors, mask)


def _windows(items: Sequence[Item], batch_size: int, texts_at_once: int) -> list[list[int]]:
    """Row numbers of each window: of one modality, long texts first."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for row, item in enumerate(items):
        kinds.setdefault((item.text is not None, bool(item.images)), []).append(row)
    windows = []
    for (_, has_images), rows in kinds.items():
        rows.sort(key=lambda row: -len(items[row].text or ""))
        step = batch_size if has_images else texts_at_once
        windows += [rows[start : start + step] for start in range(0, len(rows), step)]
    return windows


class _PreparedItems:
    """Windows of items with their inputs. Raises DataError for an item that cannot be read."""

    def __init__(self, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions) -> None:
        self.processor = processor
        self.items = items
        self.options = options

    def windows(self) -> Generator[tuple[list[int], Inputs], None, None]:
        """Each window's rows and inputs; the next window is made in threads while this one is embedded."""
        batch_size = self.options.batch_size
        texts_at_once = batch_size * (_TEXT_WINDOW if self.processor.counts_tokens else 1)
        windows = _windows(self.items, batch_size, texts_at_once)
        with _threads(1) as preparer, _threads(min(MAX_THREADS, os.cpu_count() or 1)) as loaders:

            def start(rows: list[int]) -> Future[tuple[list[int], Inputs]]:
                return preparer.submit(self.finish, rows, [self.load(self.items[row], loaders) for row in rows])

            waiting = [start(rows) for rows in windows[:1]]
            for number in range(1, len(windows) + 1):
                waiting += [start(following) for following in windows[number : number + 1]]
                rows, inputs = waiting.pop(0).result()
                if rows:
                    self.options.count_cut(inputs.num_truncated)
                    yield rows, inputs

    def load(self, item: Item, loaders: ThreadPoolExecutor) -> "_Loading":
        """The item's pictures in one of the threads; a text is loaded when it is prepared."""
        return loaders.submit(self.processor.load, item) if item.images else item

    def finish(self, rows: list[int], loading: "Sequence[_Loading]") -> tuple[list[int], Inputs]:
        """The rows of a window and their inputs."""
        loaded = [entry.result() if isinstance(entry, Future) else entry for entry in loading]
        return rows, self.processor.prepare(loaded, self.options.side)


class _ReadableItems(_PreparedItems):
    """The same without the items that cannot be read. refused: why, by their row numbers."""

    def __init__(self, processor: ItemProcessor, items: Sequence[Item], options: EncodeOptions) -> None:
        super().__init__(processor, items, options)
        self.refused: dict[int, DataError] = {}

    def finish(self, rows: list[int], loading: "Sequence[_Loading]") -> tuple[list[int], Inputs]:
        """The rows of a window that can be read, and their inputs."""
        loaded = self._without_refused({row: partial(_result, entry) for row, entry in zip(rows, loading, strict=True)})
        try:
            return list(loaded), self._prepare(loaded)
        except DataError:  # a text, or tokens too many; of which item it is shows each by itself
            fitting = {row: partial(self._prepared_alone, item) for row, item in loaded.items()}
            loaded = self._without_refused(fitting)
            return list(loaded), self._prepare(loaded)

    def _without_refused(self, makers: Mapping[int, Callable[[], AnyItem]]) -> dict[int, AnyItem]:
        made: dict[int, AnyItem] = {}
        for row, make in makers.items():
            try:
                made[row] = make()
            except DataError as error:
                self.refused[row] = error
        return made

    def _prepared_alone(self, item: AnyItem) -> AnyItem:
        self.processor.prepare([item], self.options.side)
        return item

    def _prepare(self, loaded: Mapping[int, AnyItem]) -> Inputs:
        return self.processor.prepare(list(loaded.values()), self.options.side) if loaded else Inputs(0, {})


_Loading = AnyItem | Future[LoadedItem]


def _result(loading: _Loading) -> AnyItem:
    return loading.result() if isinstance(loading, Future) else loading


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that finish what they are at when the block ends, and begin nothing more: it may have failed."""
    threads = ThreadPoolExecutor(number)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
