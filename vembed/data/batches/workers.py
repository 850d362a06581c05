"""Sources of loaded rows: this process, or worker processes that load blocks of rows ahead."""

import atexit
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import Literal, Protocol

import torch

from vembed.data.batches.blocks import Block, BlockLoader, LoadedRow
from vembed.data.batches.sampling import PlannedBatch, RowOrder
from vembed.data.batches.worker_process import LESS_MEMORY, WorkerProcess
from vembed.errors import WorkerError

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

    def __init__(self, blocks: Iterator[tuple[Block, list[LoadedRow]]], beyond: InlineRows, num_datasets: int) -> None:
        self._blocks = blocks
        self._beyond = beyond
        self._loaded: list[deque[LoadedRow]] = [deque() for _ in range(num_datasets)]

    def next_row(self, dataset: int) -> LoadedRow:
        while not self._loaded[dataset]:
            block, rows = next(self._blocks, (None, []))
            if block is None:
                return self._beyond.next_row(dataset)
            self._loaded[block.dataset].extend(rows)
        self._beyond.skip_row(dataset)
        return self._loaded[dataset].popleft()


class WorkerPool:
    """Worker processes that end with the pool, or with this process. Moves no global random state.

    Block i is asked of worker i modulo their number, and so the results come in order.
    """

    def __init__(self, loader: BlockLoader, num_workers: int, *, batch_size: int) -> None:
        blocks_per_batch = -(-batch_size // block_rows(batch_size, num_workers))
        self._num_ahead = num_workers * -(-_BATCHES_AHEAD * blocks_per_batch // num_workers)
        self._workers: list[WorkerProcess] = []
        self._epoch: object | None = None
        self._stop = partial(_stop, self._workers, os.getpid())
        # Called before what multiprocessing registered when it was imported, which sends SIGTERM and waits: a traceback
        # that is printed, or kept by a notebook, keeps the pool too.
        atexit.register(self._stop)
        weakref.finalize(self, self._stop)
        try:
            for _ in range(num_workers):
                self._workers.append(WorkerProcess(loader))  # before it starts: an interrupt must not lose it
                self._workers[-1].start()
        except OSError as error:
            self.close()
            raise WorkerError(f"{num_workers} processes that load rows cannot start: {error}; {LESS_MEMORY}") from error

    def load(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, list[LoadedRow]]]:
        """The blocks in order, each loaded. An earlier iteration must not go on.

        Raises WorkerError when a worker has died, and what was raised in one.
        """
        self._epoch = epoch = object()
        for worker in self._workers:
            worker.drop_waiting()
        turns, waiting = cycle(self._workers), deque[WorkerProcess]()
        for block in islice(blocks, self._num_ahead):
            waiting.append(self._asked(next(turns), block))
        while waiting:
            if self._epoch is not epoch:
                raise RuntimeError("the loader was closed, or another epoch begun, before this one was read to its end")
            with self._closed_if_broken():
                loaded = waiting.popleft().receive()
            for block in islice(blocks, 1):
                waiting.append(self._asked(next(turns), block))
            yield loaded

    def close(self) -> None:
        """Stop the workers, whatever they are doing."""
        self._epoch = None
        self._stop()
        atexit.unregister(self._stop)

    @property
    def is_closed(self) -> bool:
        """True if it has no workers, and cannot be used again."""
        return not self._workers

    def _asked(self, worker: WorkerProcess, block: Block) -> WorkerProcess:
        with self._closed_if_broken():
            worker.request(block)
        return worker

    @contextmanager
    def _closed_if_broken(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def _stop(workers: list[WorkerProcess], owner: int) -> None:
    """End the workers, unless a fork of their owner calls this. Can be called again, also after an interrupt."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    workers.clear()


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
