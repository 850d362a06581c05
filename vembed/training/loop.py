"""The training loop.

    for every epoch:                                  fit
        for every step of it:                         steps_of_epoch
            batches forward and backward              GradientCacheTrainer.step
            average over ranks, clip, update          _update
            log; evaluate, save if due                _evaluate_and_save_if_due
    evaluate and save the end

All that changes is in `TrainState`, the parameters, the optimiser and the random generators. A checkpoint holds all
four, so that a resumed run takes the same steps, to the bit. Weights are changed in `_update` alone.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from vembed.data.batches.loader import LoaderState, TrainingLoader
from vembed.errors import DataError, NotFiniteError, WorkerError
from vembed.grad_cache.cachex.functional import LossScale
from vembed.losses.lacks import BatchCheck, Lack
from vembed.losses.objective import limit_scale, scale_of
from vembed.model.base import BaseEmbeddingModel
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.interrupts import StopSignal
from vembed.training.optimizer import apply_schedule, rates_by_part
from vembed.training.plan import Plan
from vembed.training.precision import Precision
from vembed.training.rng import preserve_rng
from vembed.training.schedule import Schedule
from vembed.training.settings import GroupPart
from vembed.training.state import LogWindow, Metrics, StepSnapshot, TrainState
from vembed.training.step.not_finite import name_rows
from vembed.types import Batch
from vembed.utils.distributed import average_gradients

_log = logging.getLogger(__name__)
NUM_CHECKED_STEPS = 200  # whose batches are asked whether they can teach: rows are mixed, so the others are like them
MAX_NAN_IN_A_ROW = 20  # skipped steps, with on_nan: skip; a run that has so many will not recover


@dataclass(frozen=True)
class Engine:
    """The parts that turn batches into updates: model, gradients, optimiser, schedule. `max_grad_norm` 0: no clipping.

    on_nan: for a loss or gradient that is not finite, "raise" stops the run, "skip" leaves its step out. check: what a
    batch lacks to teach anything; None to ask nothing.
    """

    model: BaseEmbeddingModel
    trainer: GradientCacheTrainer
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    max_grad_norm: float
    on_nan: Literal["raise", "skip"] = "raise"
    check: BatchCheck | None = None


@dataclass(frozen=True)
class StepRecord:
    """The figures of one step. `skipped`: loss or gradient was not finite, so the parameters stayed as they were.

    loss: the mean over its batches; over those with a finite loss where one had none, NaN where all had none.
    learning_rates: part of the model -> the highest rate of its groups. grad_norm: before clipping. lacks: what each of
    its batches lacks to teach anything (None: nothing), of the first batches of a run.
    """

    loss: float
    learning_rates: Mapping[GroupPart, float]
    grad_norm: float
    temperature: float
    num_samples: int
    load_seconds: float
    step_seconds: float
    skipped: bool
    lacks: tuple[Lack | None, ...] = ()


class Callback(Protocol):
    """Is called as a run goes on: a metrics file, a progress bar, a tracker."""

    def on_step(self, record: StepRecord, state: TrainState) -> None:
        """After every step."""

    def on_log(self, record: StepRecord, state: TrainState) -> None:
        """Every `logging_steps` steps and after the last one; `state.window` holds the sums since the call before."""

    def on_evaluation(self, metrics: Metrics, state: TrainState) -> None:
        """After every evaluation."""


@dataclass(frozen=True)
class Hooks:
    """The functions that the loop calls between steps, each at most once per step.

    evaluate: the metrics of the validation sets; None without validation data. keep_best: is given them, and saves the
    weights if they are the best so far. save: writes a checkpoint. stop: is asked whether a signal came.
    """

    evaluate: Callable[[], Metrics] | None
    keep_best: Callable[[Metrics, TrainState], None]
    save: Callable[[TrainState], object]
    callbacks: Sequence[Callback]
    stop: StopSignal


def fit(engine: Engine, loader: TrainingLoader, plan: Plan, state: TrainState, *, hooks: Hooks) -> None:
    """Train from `state` to the end of `plan`.

    Raises StopRequested after a signal, DataError for a row that cannot be used and WorkerError when a process that
    loads rows died, each at a point that can be saved and continued from; NotFiniteError when the loss or the gradient
    is no longer a number, naming step and rows.
    """
    while state.step < plan.num_steps:
        # A signal may have stopped the run after a step whose evaluation was due: a resumed run makes up for it here.
        _evaluate_and_save_if_due(engine, plan, state, hooks)
        for record in steps_of_epoch(engine, loader, plan, state):
            _run_callbacks(record, plan, state, hooks.callbacks)
            hooks.stop.check()
            if state.step == plan.num_steps:
                break
            _evaluate_and_save_if_due(engine, plan, state, hooks)
        else:  # no break: the epoch is over, and the run is not
            if plan.eval_steps is None:
                evaluate_once(engine, state, hooks)
            state.epoch, state.loader = state.epoch + 1, None
            if plan.save_steps is None:
                _save_unless_skipped(state, hooks)
    evaluate_once(engine, state, hooks)
    save_once(state, hooks)


def steps_of_epoch(engine: Engine, loader: TrainingLoader, plan: Plan, state: TrainState) -> Iterator[StepRecord]:
    """Take the remaining steps of the state's epoch and yield the record of each; the state counts them.

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


def evaluate_once(engine: Engine, state: TrainState, hooks: Hooks) -> None:
    """Evaluate, unless these weights were already evaluated; leaves the random generators as they were."""
    if hooks.evaluate is None or state.evaluated_step == state.step:
        return
    with hooks.stop.interruptible(), preserve_rng():
        engine.model.eval()
        metrics = hooks.evaluate()
    state.evaluated_step = state.step
    for callback in hooks.callbacks:
        callback.on_evaluation(metrics, state)
    hooks.keep_best(metrics, state)


def save_once(state: TrainState, hooks: Hooks) -> None:
    """Write a checkpoint, unless there is one of this step."""
    if state.saved_step != state.step:
        state.saved_step = state.step  # before saving: the checkpoint holds the state, and must know that it was saved
        hooks.save(state)


def _run_callbacks(record: StepRecord, plan: Plan, state: TrainState, callbacks: Sequence[Callback]) -> None:
    state.window.add(record.loss, record.num_samples, record.load_seconds + record.step_seconds)
    for callback in callbacks:
        callback.on_step(record, state)
    if state.step % plan.logging_steps == 0 or state.step == plan.num_steps:
        for callback in callbacks:
            callback.on_log(record, state)
        state.window = LogWindow()


def _evaluate_and_save_if_due(engine: Engine, plan: Plan, state: TrainState, hooks: Hooks) -> None:
    if state.step and plan.eval_steps is not None and state.step % plan.eval_steps == 0:
        evaluate_once(engine, state, hooks)
    # Not step % save_steps: where the due step was skipped (NaN), the next one that is not is saved in its place.
    if plan.save_steps is not None and state.step // plan.save_steps > state.saved_step // plan.save_steps:
        _save_unless_skipped(state, hooks)


def _save_unless_skipped(state: TrainState, hooks: Hooks) -> None:
    """Write a checkpoint, unless the last step was skipped: it would hold no new weights, and replace an older one."""
    if state.num_nan_in_a_row == 0:
        save_once(state, hooks)


@dataclass
class _Accumulated:
    """Sums over the batches of one step. `problem`: the reason why the step must be skipped; None if there is none."""

    num_batches: int = 0
    num_samples: int = 0
    losses: list[float] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    problem: str | None = None
    lacks: list[Lack | None] = field(default_factory=list)
    load_seconds: float = 0.0
    step_seconds: float = 0.0


def _accumulate(
    engine: Engine, batches: Iterator[tuple[Batch, LoaderState]], num_batches: int, state: TrainState
) -> _Accumulated:
    """Accumulate the gradient of the mean loss of up to `num_batches` batches; fewer when the epoch ends."""
    total, before = _Accumulated(), StepSnapshot.take(engine.model, state)
    loss_scale = _loss_scale(engine.precision, num_batches)
    try:
        while total.num_batches < num_batches and _add_batch(engine, batches, total, state, loss_scale):
            pass
    except (DataError, WorkerError):
        before.restore(state)  # so that a checkpoint can be written of the step before
        raise
    return total


def _add_batch(
    engine: Engine,
    batches: Iterator[tuple[Batch, LoaderState]],
    total: _Accumulated,
    state: TrainState,
    loss_scale: LossScale,
) -> bool:
    """Add the next batch's gradient; False when the epoch is over. Only one batch is in memory at a time."""
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
        _raise_on_nan(engine, state, total.problem)
    if engine.check is not None and state.step < NUM_CHECKED_STEPS:
        total.lacks.append(engine.check(batch.targets))
    state.loader, state.chunks = loader_state, engine.trainer.chunking_finder.resolved
    total.num_batches += 1
    total.num_samples += batch.queries.num_rows
    total.origins += batch.origins
    total.load_seconds += loaded - started
    total.step_seconds += time.perf_counter() - loaded
    return True


def _finish_step(engine: Engine, accumulated: _Accumulated, plan: Plan, state: TrainState) -> StepRecord:
    """Update the parameters and the state, and zero the gradients."""
    started = time.perf_counter()
    factor = engine.schedule.factor(state.step)
    apply_schedule(engine.optimizer, factor)
    grad_norm = math.nan
    if accumulated.problem is None:
        grad_norm = _update(engine, plan.num_batches_per_step / accumulated.num_batches)
        # With a GradScaler an infinite gradient is how it finds its scale, not a divergence: it skips that step itself.
        if engine.precision.scaler is None and not math.isfinite(grad_norm):
            accumulated.problem = _divergence(grad_norm, accumulated.origins)
    engine.optimizer.zero_grad(set_to_none=True)
    _count_nan_step(engine, state, accumulated.problem)
    skipped = not math.isfinite(grad_norm)
    state.step += 1  # a skipped step too: the schedule and the data go on
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
        lacks=tuple(accumulated.lacks),
    )


def _update(engine: Engine, gradient_factor: float) -> float:
    """Average the gradient over ranks, clip it, and apply it if it is finite; returns its norm before clipping.

    `gradient_factor` corrects the last step of an epoch, whose fewer losses were still divided by the full number of
    batches per step. Weights change here and nowhere else: an EMA of them would be updated at the end of this function.
    """
    parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
    average_gradients(parameters)  # before the scaler looks for what is not finite, so that all ranks find the same
    scaler = engine.precision.scaler
    if scaler is not None:
        scaler.unscale_(engine.optimizer)
    if gradient_factor != 1:
        for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
            gradient.mul_(gradient_factor)
    # Called without clipping too, for the norm: a limit of inf scales nothing.
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, engine.max_grad_norm or math.inf))
    if scaler is not None:
        scaler.step(engine.optimizer)
        scaler.update()
    elif math.isfinite(norm):
        engine.optimizer.step()
    limit_scale(engine.model.logit_scale)
    return norm


def _count_nan_step(engine: Engine, state: TrainState, problem: str | None) -> None:
    """Count the steps skipped in a row. Raises NotFiniteError with on_nan: raise, and after too many."""
    if problem is None:
        state.num_nan_in_a_row = 0
        return
    _raise_on_nan(engine, state, problem)
    state.num_nan_in_a_row += 1
    _log.warning("step %d is left out: %s", state.step + 1, problem)
    if state.num_nan_in_a_row == MAX_NAN_IN_A_ROW:
        raise NotFiniteError(f"step {state.step + 1}: the {MAX_NAN_IN_A_ROW}th in a row to be left out: {problem}")


def _raise_on_nan(engine: Engine, state: TrainState, problem: str) -> None:
    if engine.on_nan == "raise":
        raise NotFiniteError(f"step {state.step + 1}: {problem}")


def _divergence(norm: float, origins: Sequence[str]) -> str:
    return f"the gradient's norm is {norm}: training diverged at {name_rows(origins)}; lower the learning rate"


def _loss_scale(precision: Precision, num_batches: int) -> LossScale:
    """The factor of each batch's loss: 1 / num_batches, through the GradScaler where there is one."""
    scaler = precision.scaler
    if scaler is None:
        return 1 / num_batches
    return lambda loss: scaler.scale(loss / num_batches)
