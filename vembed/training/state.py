"""The state of a run besides parameters, optimiser and random generators: counters, best metric, place in the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from vembed.data.batches.loader import LoaderState
from vembed.grad_cache.batch_norm import is_batch_norm
from vembed.training.rng import capture_rng, restore_rng

Metrics = Mapping[str, Mapping[str, float]]  # data set -> metric -> value


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: `value` of `metric`, averaged over the validation sets, after `step`."""

    metric: str
    value: float
    step: int


@dataclass
class LogWindow:
    """Sums since the last line of metrics.jsonl. `seconds` leave out evaluations and checkpoints.

    num_steps: those with a finite loss.
    """

    loss_sum: float = 0.0
    num_steps: int = 0
    num_samples: int = 0
    seconds: float = 0.0

    def add(self, loss: float, num_samples: int, seconds: float) -> None:
        """Count one step."""
        if math.isfinite(loss):
            self.loss_sum += loss
            self.num_steps += 1
        self.num_samples += num_samples
        self.seconds += seconds

    @property
    def mean_loss(self) -> float:
        """Mean loss of the steps; NaN when none had a finite one."""
        return self.loss_sum / self.num_steps if self.num_steps else math.nan

    @property
    def samples_per_second(self) -> float:
        """Rows per second."""
        return self.num_samples / self.seconds


@dataclass
class TrainState:
    """Counters of a run. The loop writes them, a checkpoint holds them.

    step: finished steps, skipped ones included. epoch: the running epoch, from 0. loader: the loader's place in it
    (None: at its start). evaluated_step, saved_step: the last step with an evaluation, with a checkpoint, so that none
    is missed or repeated after a resume. num_metrics_lines, metrics_checksum: lines of metrics.jsonl that belong to the
    steps so far, and the CRC-32 of their bytes (None: of a checkpoint that had none).
    num_nan_in_a_row: steps that on_nan: skip left out since the last one that was not. num_evaluations, figures_differ:
    how many chose best/, and whether any of their figures was another than the best. chunks: the chunk sizes that the
    gradient cache's `auto` chose; free memory may differ after a resume, and other chunks add up in another order.
    """

    step: int = 0
    epoch: int = 0
    loader: LoaderState | None = None
    num_samples: int = 0
    num_skipped_steps: int = 0
    num_nan_in_a_row: int = 0
    num_truncated_texts: int = 0
    evaluated_step: int = 0
    saved_step: int = 0
    num_metrics_lines: int = 0
    metrics_checksum: int | None = 0
    best: Best | None = None
    num_evaluations: int = 0
    figures_differ: bool = False
    chunks: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON
    window: LogWindow = field(default_factory=LogWindow)

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it; floats survive the round trip exactly."""
        return asdict(self) | {"loader": None if self.loader is None else self.loader.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:  # Any: JSON
        """The state that `to_dict` wrote."""
        loader, best = values["loader"], values["best"]
        values = {"metrics_checksum": None, **values}
        return cls(
            **{key: value for key, value in values.items() if key not in {"loader", "best", "window"}},
            loader=None if loader is None else LoaderState.from_dict(loader),
            best=None if best is None else Best(**best),
            window=LogWindow(**values["window"]),
        )


@dataclass(frozen=True)
class StepSnapshot:
    """A copy of what the batches of a step change before its update, to undo them when a later one cannot be read.

    Weights are not in it: they change only at the end of a step. statistics: each buffer of the batch norms that are
    in training mode, and its value then.
    """

    loader: LoaderState | None
    num_truncated_texts: int
    generators: Mapping[str, Tensor]
    statistics: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def take(cls, model: nn.Module, state: TrainState) -> StepSnapshot:
        """Copy it before the first batch of a step."""
        learning = [module for module in model.modules() if is_batch_norm(module) and module.training]
        statistics = [(buffer, buffer.clone()) for module in learning for buffer in module.buffers()]
        return cls(state.loader, state.num_truncated_texts, capture_rng(), tuple(statistics))

    def restore(self, state: TrainState) -> None:
        """Put all of it back, in `state`, in the buffers and in the random generators."""
        state.loader, state.num_truncated_texts = self.loader, self.num_truncated_texts
        for buffer, before in self.statistics:
            buffer.copy_(before)
        restore_rng(self.generators)
