"""The training loop.

    for every epoch:                                  fit
        for every step of it:                         steps_of_epoch
            batches forward and backward              GradientCacheTrainer.step
            average over ranks, clip, update          _update
            log; evaluate, save if due                _do_what_is_due
    evaluate and save the end

Everything that changes is in `TrainState`, the parameters, the optimiser and the random generators; a checkpoint holds
all four, so a run that is continued from one does what it would have done. Weights are changed in `_update` alone.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from vembed.data.batches.loader import LoaderState, TrainingLoader
from vembed.errors import DataError, NotFiniteError
from vembed.grad_cache.cachex.functional import LossScale
from vembed.losses.objective import limit_scale, scale_of
from vembed.model.base import BaseEmbeddingModel
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.interrupts import StopSignal
from vembed.training.optimizer import apply_schedule, rates_by_part
from vembed.training.plan import Plan
from vembed.training.precision import Precision
from vembed.training.rng import rng_unmoved
from vembed.training.schedule import Schedule
from vembed.training.settings import GroupPart
from vembed.training.state import LogWindow, Metrics, StepStart, TrainState
from vembed.training.step.not_finite import name_rows
from vembed.types import Batch
from vembed.utils.distributed import average_gradients

_log = logging.getLogger(__name__)
MOST_NAN_IN_A_ROW = 20  # with on_nan: skip; after so many the run learns nothing any more


@dataclass(frozen=True)
class Engine:
    """What turns batches into updates. `max_grad_norm` 0 does not clip.

    on_nan: whether a loss or gradient that is no number stops the run, or its step is left out.
    """

    model: BaseEmbeddingModel
    trainer: GradientCacheTrainer
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    max_grad_norm: float
    on_nan: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True)
class StepRecord:
    """What one step did. `skipped`: the gradient is no number, so the parameters stayed as they were.

    loss: the mean of its batches', NaN when none of them is a number.
    learning_rates: the highest of each part of the model.
    """

    loss: float
    learning_rates: Mapping[GroupPart, float]
    grad_norm: float
    temperature: float
    num_samples: int
    load_seconds: float
    step_seconds: float
    skipped: bool


class Callback(Protocol):
    """Something that watches a run: a file, a progress bar, a tracker."""

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """After every step."""

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Every `logging_steps` steps and after the last one; `state.window` holds the sums since then."""

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """After every evaluation."""


@dataclass(frozen=True)
class Milestones:
    """What happens now and then. `evaluate` is None without validation data; each is called once per due step."""

    evaluate: Callable[[], Metrics] | None
    judge: Callable[[Metrics, TrainState], None]
    save: Callable[[TrainState], object]
    callbacks: Sequence[Callback]
    stop: StopSignal


def fit(engine: Engine, loader: TrainingLoader, plan: Plan, state: TrainState, *, milestones: Milestones) -> None:
    """Train from `state` to the end of `plan`.

    Raises StopRequested after a signal and DataError for a row that cannot be used, each at a point that can be saved
    and continued from; NotFiniteError when the loss or the gradient is no longer a number, naming step and rows.
    """
    while state.step < plan.num_steps:
        _do_what_is_due(engine, plan, state, milestones)  # if a signal came first, before the run was continued
        for record in steps_of_epoch(engine, loader, plan, state):
            _tell(record, plan, state, milestones.callbacks)
            milestones.stop.check()
            if state.step == plan.num_steps:
                break
            _do_what_is_due(engine, plan, state, milestones)
        else:
            if plan.eval_steps is None:
                evaluate_once(engine, state, milestones)
            state.epoch, state.loader = state.epoch + 1, None
            if plan.save_steps is None:
                _save_if_it_learned(state, milestones)
    evaluate_once(engine, state, milestones)
    save_once(state, milestones)


def steps_of_epoch(engine: Engine, loader: TrainingLoader, plan: Plan, state: TrainState) -> Iterator[StepRecord]:
    """Do the steps that are left of the state's epoch, one per item; the state counts them.

    The last step of an epoch may have fewer batches than the others. Raises DataError when an epoch has no batch.
    """
    engine.model.train()
    batches = loader.epoch(state.epoch, state.loader)
    num_batches = 0
    while True:
        accumulated = _accumulate(engine, batches, plan.num_batches_per_step, state)
        if accumulated.num_batches == 0:
            break
        num_batches += accumulated.num_batches
        yield _finish_step(engine, accumulated, plan, state)
        engine.model.train()  # an evaluation may have come between
    if num_batches == 0 and state.loader is None:
        raise DataError(f"epoch {state.epoch + 1} of the training data has no batch to train on")


def evaluate_once(engine: Engine, state: TrainState, milestones: Milestones) -> None:
    """Evaluate, unless these weights were; leaves the random generators as they were."""
    if milestones.evaluate is None or state.evaluated_step == state.step:
        return
    with milestones.stop.at_once(), rng_unmoved():
        engine.model.eval()
        metrics = milestones.evaluate()
    state.evaluated_step = state.step
    for callback in milestones.callbacks:
        callback.on_evaluation(metrics, state)
    milestones.judge(metrics, state)


def save_once(state: TrainState, milestones: Milestones) -> None:
    """Write a checkpoint, unless there is one of this step."""
    if state.saved_step != state.step:
        state.saved_step = state.step
        milestones.save(state)


def _tell(record: StepRecord, plan: Plan, state: TrainState, callbacks: Sequence[Callback]) -> None:
    state.window.add(record.loss, record.num_samples, record.load_seconds + record.step_seconds)
    for callback in callbacks:
        callback.on_step(record, state)
    if state.step % plan.logging_steps == 0 or state.step == plan.num_steps:
        for callback in callbacks:
            callback.on_log(record, state)
        state.window = LogWindow()


def _do_what_is_due(engine: Engine, plan: Plan, state: TrainState, milestones: Milestones) -> None:
    if state.step and plan.eval_steps is not None and state.step % plan.eval_steps == 0:
        evaluate_once(engine, state, milestones)
    if plan.save_steps is not None and state.step // plan.save_steps > state.saved_step // plan.save_steps:
        _save_if_it_learned(state, milestones)


def _save_if_it_learned(state: TrainState, milestones: Milestones) -> None:
    """Write a checkpoint, unless the last step was left out: it would hold nothing new, and push out one of before."""
    if state.num_nan_in_a_row == 0:
        save_once(state, milestones)


@dataclass
class _Accumulated:
    """Sums over the batches of one step. `problem`: why the step cannot be used, if it cannot."""

    num_batches: int = 0
    num_samples: int = 0
    losses: list[float] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    problem: str | None = None
    load_seconds: float = 0.0
    step_seconds: float = 0.0


def _accumulate(
    engine: Engine, batches: Iterator[tuple[Batch, LoaderState]], num_batches: int, state: TrainState
) -> _Accumulated:
    """Add up the gradient of the mean loss of up to `num_batches` batches; fewer when the epoch ends."""
    total, start = _Accumulated(), StepStart.of(engine.model, state)
    loss_scale = _loss_scale(engine.precision, num_batches)
    try:
        while total.num_batches < num_batches and _add_batch(engine, batches, total, state, loss_scale):
            pass
    except DataError:
        start.restore(state)  # so that a checkpoint can be written of the step before
        raise
    return total


def _add_batch(
    engine: Engine,
    batches: Iterator[tuple[Batch, LoaderState]],
    total: _Accumulated,
    state: TrainState,
    loss_scale: LossScale,
) -> bool:
    """Add the next batch's gradient; False when the epoch has none. No two batches are held at once."""
    started = time.perf_counter()
    batch, loader_state = next(batches, (None, None))
    loaded = time.perf_counter()
    if batch is None:
        return False
    try:
        result = engine.trainer.step(batch, loss_scale=loss_scale)
        total.losses.append(result.loss)
        state.num_truncated_texts += result.num_truncated
    except NotFiniteError as error:
        total.problem = str(error)
        _refuse_nan(engine, state, total.problem)
    state.loader, state.chunks = loader_state, engine.trainer.chunking_finder.found
    total.num_batches += 1
    total.num_samples += batch.queries.num_rows
    total.origins += batch.origins
    total.load_seconds += loaded - started
    total.step_seconds += time.perf_counter() - loaded
    return True


def _finish_step(engine: Engine, accumulated: _Accumulated, plan: Plan, state: TrainState) -> StepRecord:
    """Update the parameters and the state."""
    started = time.perf_counter()
    factor = engine.schedule.factor(state.step)
    apply_schedule(engine.optimizer, factor)
    grad_norm = math.nan
    if accumulated.problem is None:
        grad_norm = _update(engine, plan.num_batches_per_step / accumulated.num_batches)
        if engine.precision.scaler is None and not math.isfinite(grad_norm):
            accumulated.problem = _diverged(grad_norm, accumulated.origins)
    engine.optimizer.zero_grad(set_to_none=True)
    _note_nan(engine, state, accumulated.problem)
    skipped = not math.isfinite(grad_norm)
    state.step += 1
    state.num_samples += accumulated.num_samples
    state.num_skipped_steps += skipped
    return StepRecord(
        loss=sum(accumulated.losses) / len(accumulated.losses) if accumulated.losses else math.nan,
        learning_rates=rates_by_part(engine.optimizer),
        grad_norm=grad_norm,
        temperature=(1 / scale_of(engine.model.logit_scale.detach())).item(),
        num_samples=accumulated.num_samples,
        load_seconds=accumulated.load_seconds,
        step_seconds=accumulated.step_seconds + time.perf_counter() - started,
        skipped=skipped,
    )


def _update(engine: Engine, gradient_factor: float) -> float:
    """Average the gradient over ranks, clip and apply it if it is finite; gives its norm before clipping.

    `gradient_factor` makes up for the batches that a step lacks. Weights change here and nowhere else: an average of
    them would be updated at the end of this function.
    """
    parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
    average_gradients(parameters)  # before the scaler looks for what is not finite, so that all ranks find the same
    scaler = engine.precision.scaler
    if scaler is not None:
        scaler.unscale_(engine.optimizer)
    if gradient_factor != 1:
        for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
            gradient.mul_(gradient_factor)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, engine.max_grad_norm or math.inf))
    if scaler is not None:
        scaler.step(engine.optimizer)
        scaler.update()
    elif math.isfinite(norm):
        engine.optimizer.step()
    limit_scale(engine.model.logit_scale)
    return norm


def _note_nan(engine: Engine, state: TrainState, problem: str | None) -> None:
    """Count a step that cannot be used, or raise."""
    if problem is None:
        state.num_nan_in_a_row = 0
        return
    _refuse_nan(engine, state, problem)
    state.num_nan_in_a_row += 1
    _log.warning("step %d is left out: %s", state.step + 1, problem)
    if state.num_nan_in_a_row == MOST_NAN_IN_A_ROW:
        raise NotFiniteError(f"step {state.step + 1}: the {MOST_NAN_IN_A_ROW}th in a row to be left out: {problem}")


def _refuse_nan(engine: Engine, state: TrainState, problem: str) -> None:
    if engine.on_nan == "raise":
        raise NotFiniteError(f"step {state.step + 1}: {problem}")


def _diverged(norm: float, origins: Sequence[str]) -> str:
    return f"the gradient's norm is {norm}: training diverged at {name_rows(origins)}; lower the learning rate"


def _loss_scale(precision: Precision, num_batches: int) -> LossScale:
    """What the loss is multiplied by before its gradient is taken."""
    scaler = precision.scaler
    if scaler is None:
        return 1 / num_batches
    return lambda loss: scaler.scale(loss / num_batches)
