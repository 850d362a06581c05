"""Speed, memory and bottleneck of a run, from a few real steps."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from vembed.data.batches.loader import TrainingLoader
from vembed.training.loop import Engine, StepRecord, steps_of_epoch
from vembed.training.plan import Plan
from vembed.training.state import TrainState
from vembed.utils.memory import peak_memory_mib, reset_peak_memory

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Measurement:
    """Figures of `num_steps` steps. wait_seconds: for the loader; step_seconds: in the model; both summed."""

    num_steps: int
    num_samples: int
    wait_seconds: float
    step_seconds: float
    peak_memory_mib: float
    steps_per_epoch: int
    num_workers: int

    @property
    def seconds(self) -> float:
        """Time of all steps."""
        return self.wait_seconds + self.step_seconds

    @property
    def samples_per_second(self) -> float:
        """Rows per second."""
        return self.num_samples / self.seconds

    @property
    def hours_per_epoch(self) -> float:
        """Hours of an epoch's steps; evaluations and checkpoints left out."""
        return self.seconds / self.num_steps * self.steps_per_epoch / _SECONDS_PER_HOUR

    @property
    def bottleneck(self) -> str:
        """The one of loader and model that takes more of the time."""
        return "loader" if self.wait_seconds > self.step_seconds else "model"

    def lines(self) -> list[str]:
        """The figures in words."""
        share = self.wait_seconds / self.seconds
        advice = {
            "loader": "more num_workers, or smaller images on disk, would help",
            "model": "a faster device, smaller images or mixed precision would help",
        }
        return [
            f"steps measured      {self.num_steps} (after one to warm up)",
            f"peak memory         {self.peak_memory_mib:.0f} MiB",
            f"samples per second  {self.samples_per_second:.1f}",
            f"hours per epoch     {self.hours_per_epoch:.3f} ({self.steps_per_epoch} steps, without evaluations)",
            f"loader              {share:.0%} of the time is spent waiting for it ({self.num_workers} workers)",
            f"limit               the {self.bottleneck}; {advice[self.bottleneck]}",
        ]


def measure(engine: Engine, loader: TrainingLoader, plan: Plan, *, num_steps: int, num_workers: int) -> Measurement:
    """Train `num_steps` steps after one to warm up. The model's weights change; nothing is written."""
    reset_peak_memory(engine.precision.device)
    records = list(itertools.islice(_endless_steps(engine, loader, plan), num_steps + 1))[1:]
    return Measurement(
        num_steps=len(records),
        num_samples=sum(record.num_samples for record in records),
        wait_seconds=sum(record.load_seconds for record in records),
        step_seconds=sum(record.step_seconds for record in records),
        peak_memory_mib=peak_memory_mib(engine.precision.device),
        steps_per_epoch=plan.steps_per_epoch,
        num_workers=num_workers,
    )


def _endless_steps(engine: Engine, loader: TrainingLoader, plan: Plan) -> Iterator[StepRecord]:
    state = TrainState()
    while True:
        yield from steps_of_epoch(engine, loader, plan, state)
        state.epoch, state.loader = state.epoch + 1, None
