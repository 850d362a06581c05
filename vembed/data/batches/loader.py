"""The training loader: the batches of an epoch, each with the state from which exactly the following ones come again.

    plan of batches -> rows in order -> loaded, here or in workers -> bad rows passed over -> collated

A document that cannot be read beside others of its row is left out of the row, which counts as used.

Workers load ahead, but a row counts as used only when its batch is given out; so the state is one place per data set,
whatever the number of workers. After a bad row the next of its data set's endless order is taken: every batch has its
planned size, and all processes have the same number of batches without asking each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vembed.data.batches.blocks import BlockLoader
from vembed.data.batches.sampling import DatasetSize, PlannedBatch, RowOrder, num_batches, plan_epoch
from vembed.data.batches.workers import (
    InlineRows,
    PooledRows,
    RowSource,
    WorkerPool,
    planned_blocks,
    resolve_num_workers,
)
from vembed.data.collators.registry import CollatorRegistry
from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.settings import DataSettings
from vembed.data.validation import BadRow, BadSamples
from vembed.errors import CheckpointError, DataError
from vembed.types import Batch, LoadedExample, Processor


@dataclass(frozen=True)
class LoaderState:
    """A point between two batches: batches given out, and the next place in each data set's order.

    `run` holds what the order depends on, so that a state of another run is refused.
    """

    epoch: int
    num_batches: int
    places: tuple[int, ...]
    run: Mapping[str, Any]  # Any: plain JSON values

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "epoch": self.epoch,
            "num_batches": self.num_batches,
            "places": list(self.places),
            "run": dict(self.run),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LoaderState":
        """The state that `to_dict` wrote."""
        return cls(values["epoch"], values["num_batches"], tuple(values["places"]), dict(values["run"]))


class TrainingLoader:
    """Batches of `batch_size` rows per process. One batch is of one data set, the same on all processes.

    Workers stop when the loader is deleted or `close`d.
    """

    def __init__(
        self,
        datasets: Sequence[VisualRetrievalDataset],
        processor: Processor,
        settings: DataSettings,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        bad_samples: BadSamples | None = None,
    ) -> None:
        _check(datasets, rank, world_size)
        self._sizes = [DatasetSize(dataset.name, len(dataset), dataset.weight) for dataset in datasets]
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size
        self._loader = BlockLoader(
            datasets,
            processor,
            seed,
            settings.augment,
            settings.num_hard_negatives,
            settings.query_image_as_negative,
            settings.image_host_cache,
            settings.on_bad_sample,
        )
        make_collator = CollatorRegistry.get("default")
        self._collate = make_collator(num_hard_negatives=settings.num_hard_negatives, seed=seed)
        self._num_workers = resolve_num_workers(settings.num_workers)
        self._pool: WorkerPool | None = None
        self._bad_samples = BadSamples(settings) if bad_samples is None else bad_samples
        self._bad_samples.set_num_rows(sum(size.num_rows for size in self._sizes))

    def num_batches(self, epoch: int) -> int:
        """Batches of the epoch; the same for every epoch and process."""
        return sum(num_batches(size, self._batch_size, self._world_size) for size in self._sizes)

    def epoch(self, epoch: int, state: LoaderState | None = None) -> Iterator[tuple[Batch, LoaderState]]:
        """The batches of the epoch, from the start or after `state`, each with the state after it.

        Raises DataError as `on_bad_sample` says, WorkerError when a worker died, CheckpointError for the state of
        another run.
        """
        start = LoaderState(epoch, 0, (0,) * len(self._sizes), self._run()) if state is None else state
        self._check_state(start, epoch)
        plan = self._plan(epoch)[start.num_batches :]
        rows = self._rows(plan, start)
        places = list(start.places)
        for number, planned in enumerate(plan, start.num_batches + 1):
            # Not assigned to a variable, which would keep this batch's pictures alive while the next one is loaded.
            yield (
                self._collate(self._fill(planned, rows, places), epoch),
                LoaderState(epoch, number, tuple(places), start.run),
            )

    def first_batches(self) -> Iterator[Batch]:
        """The first batch of each data set in the first epoch, for a look at what the sets hold."""
        start = LoaderState(0, 0, (0,) * len(self._sizes), self._run())
        first = {planned.dataset: planned for planned in reversed(self._plan(0))}
        rows = self._rows(list(first.values()), start)
        places = list(start.places)
        for planned in first.values():
            yield self._collate(self._fill(planned, rows, places), 0)

    def close(self) -> None:
        """Stop the workers; a later epoch starts new ones, and one that was not read to its end cannot go on."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _plan(self, epoch: int) -> list[PlannedBatch]:
        return plan_epoch(self._sizes, self._batch_size, seed=self._seed, epoch=epoch, world_size=self._world_size)

    def _rows(self, plan: Sequence[PlannedBatch], start: LoaderState) -> RowSource:
        orders = [
            RowOrder(size, seed=self._seed, epoch=start.epoch, rank=self._rank, world_size=self._world_size)
            for size in self._sizes
        ]
        inline = InlineRows(self._loader, orders, start.places, start.epoch)
        if self._num_workers == 0:
            return inline
        if self._pool is None or self._pool.is_closed:
            self._pool = WorkerPool(self._loader, self._num_workers, batch_size=self._batch_size)
        blocks = planned_blocks(plan, orders, start.places, epoch=start.epoch, num_workers=self._num_workers)
        return PooledRows(self._pool.load(blocks), inline, len(orders))

    def _fill(self, planned: PlannedBatch, rows: RowSource, places: list[int]) -> list[LoadedExample]:
        """The next usable rows of the planned data set; moves its place past every row looked at."""
        examples: list[LoadedExample] = []
        num_bad = 0
        while len(examples) < planned.num_rows:
            row = rows.next_row(planned.dataset)
            places[planned.dataset] += 1
            if isinstance(row, BadRow):
                self._bad_samples.add(row.origin, row.reason)
                num_bad += 1
                self._refuse_unusable(planned.dataset, num_bad, row)
                continue
            self._bad_samples.add_documents(row.origin, row.left_out)
            examples.append(row)
        return examples

    def _refuse_unusable(self, dataset: int, num_bad: int, row: BadRow) -> None:
        """Raise DataError once every row of the data set was bad: no further one would fill the batch."""
        size = self._sizes[dataset]
        if num_bad > size.num_rows:
            raise DataError(
                f"data set {size.name}: too few of its {size.num_rows} rows can be used; one of them: {row.reason}"
            )

    def _run(self) -> dict[str, Any]:  # Any: plain JSON values
        return {
            "seed": self._seed,
            "batch_size": self._batch_size,
            "rank": self._rank,
            "world_size": self._world_size,
            "datasets": [[size.name, size.num_rows, size.weight] for size in self._sizes],
        }

    def _check_state(self, state: LoaderState, epoch: int) -> None:
        now = {**self._run(), "epoch": epoch}
        then = {**state.run, "epoch": state.epoch}
        changed = [f"{key} was {then.get(key)} and is {now[key]}" for key in now if now[key] != then.get(key)]
        if changed:
            raise CheckpointError(f"the order of rows cannot be continued: {'; '.join(changed)}")


def _check(datasets: Sequence[VisualRetrievalDataset], rank: int, world_size: int) -> None:
    if not datasets:
        raise DataError("there is no data set to train on")
    for dataset in datasets:
        if len(dataset) == 0:
            raise DataError(f"data set {dataset.name}: has no rows")
    if not 0 <= rank < world_size:
        raise DataError(f"rank {rank} is not below world_size {world_size}")
