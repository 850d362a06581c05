"""A run that is put together, and what can be done with it: look at it, measure it, train it."""

import dataclasses
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from vembed.data.batches.loader import TrainingLoader
from vembed.data.summary import summarize
from vembed.errors import DataError, Interrupted, NotFiniteError
from vembed.losses.objective import Objective
from vembed.model.modeling import VisualRetrievalModel
from vembed.training.interrupts import StopRequested, stop_signal
from vembed.training.loop import Callback, Engine, Milestones, fit, save_once
from vembed.training.optimizer import GroupSummary
from vembed.training.plan import Plan
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
    """Model, data, and what turns one into a better other. `frozen`: parts without a rate."""

    data: RunData
    model: VisualRetrievalModel
    objective: Objective
    engine: Engine
    loader: TrainingLoader
    plan: Plan
    groups: Sequence[GroupSummary]
    frozen: Sequence[Part]


def overview(session: Session, *, reason: str, teacher: str | None = None) -> Overview:
    """What the run would do. Reads one batch of each data set; trains nothing.

    reason: why the model is taken for one of its family. teacher: what it learns from, in words.
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
    """What the run was made with and of."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "data": {role: [summarize(dataset) for dataset in sets] for role, sets in session.data.roles.items()},
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
    """Train from `state` to the end, with checkpoints and best/ in the run's folder; `callbacks` watch.

    Raises Interrupted after a signal and DataError for a row that cannot be used, when a checkpoint is written;
    NotFiniteError, which names the last checkpoints.
    """
    engine, plan = session.engine, session.plan
    reset_peak_memory(engine.precision.device)

    def judge(metrics: Metrics, state: TrainState) -> None:
        value = sum(values[best_metric] for values in metrics.values()) / len(metrics)
        if state.best is None or value > state.best.value:
            state.best = Best(best_metric, value, state.step)
            checkpoints.save_best(state)

    with stop_signal() as stop:
        milestones = Milestones(evaluate, judge, checkpoints.save, callbacks, stop)
        try:
            if len(session.data.train) > 1 and engine.trainer.chunking_finder.has_to_choose:
                engine.trainer.find_chunking(*session.loader.first_batches())  # rows of one set may be larger
            fit(engine, session.loader, plan, state, milestones=milestones)
        except StopRequested:
            save_once(state, milestones)
            assert stop.number is not None
            cause = f"stopped by {signal.Signals(stop.number).name}"
            raise Interrupted(f"{cause} {_how_to_go_on(checkpoints, state, plan)}", stop.number) from None
        except DataError as error:
            if state.step == 0:
                raise
            save_once(state, milestones)
            advice = "; mend the data first, or add --on_bad_sample skip"
            raise DataError(f"{error}\nstopped {_how_to_go_on(checkpoints, state, plan)}{advice}") from error
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}\n{_last_good(checkpoints, state)}") from error
        finally:
            session.loader.close()


def _last_good(checkpoints: Checkpoints, state: TrainState) -> str:
    """Where the weights before a failed step are, and older ones from which a step still went well."""
    written = checkpoints.run.checkpoints()
    if not written:
        return "no checkpoint was written before that; save_steps sets how often one is"
    last_update = state.step - max(0, state.num_nan_in_a_row - 1)
    good = [one for one in written if checkpoint_step(one) < last_update]
    if not good or good[-1] == written[-1]:
        return f"the weights before that are in {written[-1]} (model_name: {written[-1]} starts a new run from them)"
    return (
        f"the weights before that are in {written[-1]}; from those in {good[-1]}, which are older, a step still went"
        f" well (model_name: {good[-1]} starts a new run from them)"
    )


def _how_to_go_on(checkpoints: Checkpoints, state: TrainState, plan: Plan) -> str:
    run = checkpoints.run
    return (
        f"after step {state.step} of {plan.num_steps};"
        f" {run.checkpoint(state.step)} is written. Continue with:"
        f" vembed train {run.config} --resume_from_checkpoint latest"
    )
