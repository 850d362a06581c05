"""A run, assembled and ready: an overview of it, its record for run.json, and its training."""

import dataclasses
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from vembed.data.batches.loader import TrainingLoader
from vembed.data.summary import summarize
from vembed.errors import DataError, Interrupted, NotFiniteError, WorkerError
from vembed.losses.objective import Objective
from vembed.model.modeling import VisualRetrievalModel
from vembed.training.interrupts import StopRequested, stop_signal
from vembed.training.loop import Callback, Engine, Hooks, fit, save_once
from vembed.training.optimizer import GroupSummary
from vembed.training.plan import Plan
from vembed.training.run.best import count_evaluation, warn_of_equal_figures
from vembed.training.run.checkpoint import Checkpoints
from vembed.training.run.compatibility import versions
from vembed.training.run.data import RunData
from vembed.training.run.folder import checkpoint_step
from vembed.training.settings import Part
from vembed.training.state import Best, Metrics, TrainState
from vembed.training.step.chunking import chunk_batch, describe_chunks
from vembed.training.step.memory import estimate_memory
from vembed.training.trials.overview import Overview, summarize_model
from vembed.utils.memory import reset_peak_memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """The parts of a run. `frozen`: the parts of the model whose learning rate is 0, which therefore do not train."""

    data: RunData
    model: VisualRetrievalModel
    objective: Objective
    engine: Engine
    loader: TrainingLoader
    plan: Plan
    groups: Sequence[GroupSummary]
    frozen: Sequence[Part]


def overview(session: Session, *, reason: str, teacher: str | None = None) -> Overview:
    """The run before it starts: parameters, steps, chunks, memory. Reads one batch of each data set; trains nothing.

    reason: why the model is taken for one of its family. teacher: the teacher model, in words.
    """
    engine = session.engine
    processor = session.model.processor
    estimates = []
    batches = list(session.loader.first_batches())
    chunking = engine.trainer.find_chunking(*batches)
    for batch in batches:
        estimates.append(
            estimate_memory(
                engine.model,
                processor,
                batch,
                chunking=chunking,
                precision=engine.precision,
                reference=engine.trainer.reference,
                classes=session.objective.classes,
            )
        )
    chunks = [describe_chunks(chunk_batch(batch, processor, chunking), chunking) for batch in batches]
    return Overview(
        model=summarize_model(engine.model, reason, session.frozen),
        teacher=teacher,
        groups=session.groups,
        plan=session.plan,
        warmup_steps=engine.schedule.num_warmup_steps,
        rows=session.data.rows,
        device=str(engine.precision.device),
        mixed_precision=engine.precision.mixed_precision,
        chunks=tuple(dict.fromkeys(chunks)) if chunking.is_on else (),
        memory=max(estimates, key=lambda estimate: estimate.total_mib),
    )


def run_record(session: Session) -> dict[str, object]:
    """The content of run.json: versions, data sets, parameter groups, plan, device."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "data": {role: [summarize(dataset) for dataset in sets] for role, sets in session.data.roles.items()},
        "overlaps": [dataclasses.asdict(overlap) for overlap in session.data.overlaps],
        "groups": [dataclasses.asdict(group) for group in session.groups],
        "plan": dataclasses.asdict(session.plan),
        "device": str(session.engine.precision.device),
        "mixed_precision": session.engine.precision.mixed_precision,
    }


def train(
    session: Session,
    checkpoints: Checkpoints,
    state: TrainState,
    *,
    evaluate: Callable[[], Metrics] | None,
    best_metric: str,
    callbacks: Sequence[Callback],
) -> None:
    """Train from `state` to the end, with checkpoints and best/ in the run's folder; `callbacks` are called on the way.

    Raises Interrupted after a signal, DataError for a row that cannot be used and WorkerError when a process that loads
    rows died, all after writing a checkpoint (the two errors not before the first step is done); NotFiniteError, which
    names the last good checkpoints.
    """
    engine, plan = session.engine, session.plan
    reset_peak_memory(engine.precision.device)

    def keep_best(metrics: Metrics, state: TrainState) -> None:
        value = sum(values[best_metric] for values in metrics.values()) / len(metrics)  # every set counts alike
        count_evaluation(state, value, best_metric)
        if state.best is None or value >= state.best.value:  # of equal ones the later, which has learned more
            state.best = Best(best_metric, value, state.step)
            checkpoints.save_best(state)

    with stop_signal() as stop:
        hooks = Hooks(evaluate, keep_best, checkpoints.save, callbacks, stop)
        try:
            if len(session.data.train) > 1 and engine.trainer.chunking_finder.is_undecided:
                # Otherwise the first batch alone would decide, and another set's rows may be larger than its rows.
                engine.trainer.find_chunking(*session.loader.first_batches())
            fit(engine, session.loader, plan, state, hooks=hooks)
            stop.check()  # a signal may have come while the last checkpoint was written
            warn_of_equal_figures(state)
        except StopRequested:  # raised between steps or in an evaluation, where `state` and weights belong together
            save_once(state, hooks)
            assert stop.number is not None
            cause = f"stopped by {signal.Signals(stop.number).name}"
            raise Interrupted(f"{cause} {_how_to_resume(checkpoints, state, plan)}", stop.number) from None
        except DataError as error:
            if state.step == 0:
                raise  # nothing is trained yet that a checkpoint could save
            save_once(state, hooks)
            advice = "; mend the data first, or add --on_bad_sample skip"
            raise DataError(f"{error}\nstopped {_how_to_resume(checkpoints, state, plan)}{advice}") from error
        except WorkerError as error:
            if state.step == 0:
                raise
            save_once(state, hooks)
            raise WorkerError(f"{error}; stopped {_how_to_resume(checkpoints, state, plan)}") from error
        except NotFiniteError as error:
            # No checkpoint of this step: continued from it, the run would come to the same NaN again.
            raise NotFiniteError(f"{error}\n{_last_good_checkpoints(checkpoints, state)}") from error
        finally:
            session.loader.close()


def _last_good_checkpoints(checkpoints: Checkpoints, state: TrainState) -> str:
    """A sentence that names the last checkpoint, and the last one after which an update was still finite."""
    written = checkpoints.run.checkpoints()
    if not written:
        return "no checkpoint was written before that; save_steps sets how often one is"
    # The newest weights may already be what makes every step fail: they are good for sure only where a later step was
    # finite. Steps that on_nan: skip left out changed no weights; the one that failed now is not counted in state.step.
    last_update = state.step - max(0, state.num_nan_in_a_row - 1)
    good = [one for one in written if checkpoint_step(one) < last_update]
    if not good or good[-1] == written[-1]:
        return f"the weights before that are in {written[-1]} (model_name: {written[-1]} starts a new run from them)"
    return (
        f"the weights before that are in {written[-1]}; from those in {good[-1]}, which are older, a step still went"
        f" well (model_name: {good[-1]} starts a new run from them)"
    )


def _how_to_resume(checkpoints: Checkpoints, state: TrainState, plan: Plan) -> str:
    run = checkpoints.run
    return (
        f"after step {state.step} of {plan.num_steps};"
        f" {run.checkpoint(state.step)} is written. Continue with:"
        f" vembed train {run.config} --resume_from_checkpoint latest"
    )
