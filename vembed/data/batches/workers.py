"""Sources of loaded rows: this process, or worker processes that load blocks of rows ahead."""

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch

from vembed.data.batches.blocks import Block, BlockLoader, LoadedRow, PackedBlocks, unpack
from vembed.data.batches.sampling import PlannedBatch, RowOrder

_MAX_WORKERS = 8
_BATCHES_AHEAD = 2
# A block is packed, sent and unpacked whole, so that copies of it exist for a moment.
_MAX_BLOCK_ROWS = 32


class RowSource(Protocol):
    """Gives the loaded rows of each data set in its order."""

    def next_row(self, dataset: int) -> LoadedRow: ...


class InlineRows:
    """Loads each row when it is asked for. `places` are where in its order each data set goes on."""

    def __init__(self, loader: BlockLoader, orders: Sequence[RowOrder], places: Sequence[int], epoch: int) -> None:
        self._loader = loader
        self._orders = orders
        self._places = list(places)
        self._epoch = epoch

    def next_row(self, dataset: int) -> LoadedRow:
        place = self._places[dataset]
        self._places[dataset] += 1
        return self._loader.load(Block(dataset, (self._orders[dataset][place],), self._epoch))[0]

    def skip_row(self, dataset: int) -> None:
        """Note that the data set's next row was loaded elsewhere."""
        self._places[dataset] += 1


class PooledRows:
    """Rows that workers load ahead, block after block; beyond the last block (after bad rows) they are loaded here."""

    def __init__(self, packed: Iterator[bytes], beyond: InlineRows, num_datasets: int) -> None:
        self._packed = packed
        self._beyond = beyond
        self._loaded: list[deque[LoadedRow]] = [deque() for _ in range(num_datasets)]

    def next_row(self, dataset: int) -> LoadedRow:
        while not self._loaded[dataset]:
            packed = next(self._packed, None)
            if packed is None:
                return self._beyond.next_row(dataset)
            block, rows = unpack(packed)
            self._loaded[block.dataset].extend(rows)
        self._beyond.skip_row(dataset)
        return self._loaded[dataset].popleft()


class WorkerPool:
    """Worker processes that live as long as the pool, over torch's DataLoader. Moves no global random state."""

    def __init__(self, loader: BlockLoader, num_workers: int, *, batch_size: int) -> None:
        blocks_per_batch = -(-batch_size // block_rows(batch_size, num_workers))
        self._blocks = _BlockSampler()
        self._loader = torch.utils.data.DataLoader(
            PackedBlocks(loader),
            batch_size=None,
            sampler=self._blocks,
            num_workers=num_workers,
            collate_fn=_unchanged,
            persistent_workers=True,
            prefetch_factor=-(-_BATCHES_AHEAD * blocks_per_batch // num_workers),
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_parent,
        )

    def load(self, blocks: Iterator[Block]) -> Iterator[bytes]:
        """The packed blocks in order. An earlier iteration must not go on."""
        self._blocks.current = blocks
        return iter(self._loader)


def _leave_signals_to_parent(_worker: int) -> None:
    """Ctrl-C and a job's SIGTERM reach every process; the parent finishes its step first, and needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _unchanged(packed: Any) -> Any:  # Any: what torch declares here; a worker's bytes are passed on
    return packed


class _BlockSampler(torch.utils.data.Sampler[Block]):
    """The blocks of the iteration that begins next."""

    def __init__(self) -> None:
        self.current: Iterator[Block] = iter(())

    def __iter__(self) -> Iterator[Block]:
        return self.current


def resolve_num_workers(setting: int | Literal["auto"]) -> int:
    """Worker processes to start. Without a GPU "auto" starts none: they would take the cores that train."""
    if setting != "auto":
        return setting
    if not torch.accelerator.is_available():
        return 0
    return min(_MAX_WORKERS, max(1, (os.cpu_count() or 2) - 1))


def block_rows(batch_rows: int, num_workers: int) -> int:
    """Rows of a block: each worker's share of the batch, or less.

    >>> block_rows(33, 2), block_rows(4096, 2)
    (17, 32)
    """
    return min(_MAX_BLOCK_ROWS, -(-batch_rows // num_workers))


def planned_blocks(
    plan: Sequence[PlannedBatch], orders: Sequence[RowOrder], places: Sequence[int], *, epoch: int, num_workers: int
) -> Iterator[Block]:
    """The rows of each planned batch in blocks, data sets going on at `places`."""
    following = list(places)
    for batch in plan:
        part = block_rows(batch.num_rows, num_workers)
        for start in range(0, batch.num_rows, part):
            length = min(part, batch.num_rows - start)
            first = following[batch.dataset]
            following[batch.dataset] += length
            order = orders[batch.dataset]
            yield Block(batch.dataset, tuple(order[place] for place in range(first, first + length)), epoch)
