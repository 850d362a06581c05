"""Trainer: the Python front door to a run. Assemble, fit, keep the best weights, measure.

    result = Trainer("openai/clip-vit-base-patch32").train(data_path="pairs.csv", output_dir="output", epochs=3)
    predictor = Predictor(result.final)

`final/` is a copy of `best/`, the weights with the best validation figure; without validation data, the last weights.
"""

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vembed.assembly import (
    assemble,
    assemble_trial,
    checkpoints_of,
    load,
    report_settings,
    validation_function,
    with_features,
)
from vembed.config import TRAIN, Config, load_config
from vembed.data.batches.workers import resolve_num_workers
from vembed.data.settings import DataEntry, data_entries
from vembed.data.splits.split import save_split
from vembed.data.validation import BadSamples
from vembed.errors import DataError, UsageError, VembedError, WorkerError
from vembed.training.callbacks import open_callbacks
from vembed.training.distillation.teacher import teacher_items
from vembed.training.plan import rows_per_batch
from vembed.training.run.checkpoint import Checkpoints
from vembed.training.run.folder import RunFolder, find_checkpoint, hold_output_dir, prepare_output_dir
from vembed.training.run.report import RunReport, report_run
from vembed.training.session import Session, overview, run_record, train
from vembed.training.state import Best, Metrics, TrainState
from vembed.training.trials.grad_check import GradCheck, check_gradients
from vembed.training.trials.measure import Measurement, measure
from vembed.training.trials.overview import Overview
from vembed.utils.files import atomic_file, disk_errors
from vembed.utils.logging import configure_logging

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished run. `final` is the folder to deploy; `best` chose it (None without validation data).

    report: what was measured of base and tuned model, and where it is written; None if `report` is off, or nothing
    was held out to measure on.
    """

    output_dir: Path
    final: Path
    num_steps: int
    best: Best | None
    report: RunReport | None

    @property
    def metrics(self) -> Mapping[str, Metrics]:
        """label ("base", "tuned") -> set -> metric -> value, as far as it was measured."""
        return {} if self.report is None else self.report.comparison.metrics


class Trainer:
    """Tunes a model. Settings are the keys of the YAML file; those given to `train` go over those given here."""

    def __init__(self, model: str | Path | Mapping[str, object] | None = None, **settings: object) -> None:
        """model: a hub id or folder, a YAML file, or a mapping of settings; else name it in the settings."""
        self._config: Config | None = None
        self._file: Path | None = None
        self._settings = dict(settings)
        if isinstance(model, Mapping):
            self._settings = {**model, **settings}
        elif model is not None and Path(model).suffix in {".yaml", ".yml"}:
            self._file = Path(model)
        elif model is not None:
            self._settings = {"model_name": str(model), **settings}

    @classmethod
    def from_config(cls, config: Config) -> "Trainer":
        """A trainer for a config that is complete."""
        trainer = cls()
        trainer._config = config
        return trainer

    def config(self, **settings: object) -> Config:
        """The resolved config, with these settings over the trainer's own. Raises ConfigError listing all problems."""
        if self._config is None:
            return load_config(self._file, {**self._settings, **settings}, origin="argument", purpose=TRAIN)
        if settings:
            raise UsageError(f"this trainer has a complete config; put {', '.join(settings)} there")
        return self._config

    def train(self, **settings: object) -> TrainResult:
        """Train, and measure base and tuned model if `report` is on."""
        return _train(self.config(**settings))

    def overview(self, **settings: object) -> Overview:
        """An overview of what training would do. Trains nothing, writes nothing."""
        config = self.config(**settings)
        loaded = load(config)
        session = assemble(config, loaded, BadSamples(config.data))
        teacher = None if loaded.teacher is None else loaded.teacher.summary()
        with closing(session.loader):
            return overview(session, reason=session.model.reason, teacher=teacher)

    def measure(self, num_steps: int = 5, **settings: object) -> Measurement:
        """Speed and memory of `num_steps` real steps. Keeps nothing, writes nothing."""
        config = self.config(**settings)
        session = assemble_trial(config)
        num_workers = resolve_num_workers(config.data.num_workers)
        with closing(session.loader) as loader:
            return measure(session.engine, loader, session.plan, num_steps=num_steps, num_workers=num_workers)

    def grad_check(self, num_rows: int = 8, **settings: object) -> GradCheck:
        """Plain against cached gradients of the model on its data, a few rows. Trains nothing, writes nothing."""
        config = self.config(**settings)
        few = {"batch_size": min(num_rows, rows_per_batch(config.training)), "global_batch_size": None}
        training = config.training.model_copy(update={**few, "gradient_accumulation_steps": 1})
        config = dataclasses.replace(config, training=training)
        session = assemble_trial(config)
        with closing(session.loader):
            return check_gradients(session, config.grad_cache)


def _train(config: Config) -> TrainResult:
    configure_logging()
    with hold_output_dir(config.training, _inputs(config)) as run:
        return _train_and_report(config, run)


def _train_and_report(config: Config, run: RunFolder) -> TrainResult:
    state = _fit(config, run)
    held_out = config.data.test_data_path is not None or state.best is not None
    report = None
    if config.evaluation.report and held_out:
        _log.info("measuring base and tuned model")
        report = report_run(run, report_settings(config, run.config.read_text(encoding="utf-8")), run.report)
    return TrainResult(run.path, run.final, state.step, state.best, report)


def _fit(config: Config, run: RunFolder) -> TrainState:
    """Train to the end; what that takes memory for is gone afterwards."""
    loaded = with_features(load(config))
    evaluate = validation_function(config, loaded)
    if loaded.teacher is not None:
        loaded.teacher.fill(teacher_items(loaded.data.train, config.data))
    prepare_output_dir(config.training)
    session = assemble(config, loaded, BadSamples(config.data, run.path), loaded.teacher)
    checkpoints = checkpoints_of(config, loaded, session, run)
    state = _start(config, session, checkpoints)
    try:
        device, trackers = loaded.precision.device, loaded.trackers
        with open_callbacks(run, session.plan, device, state=state, trackers=trackers) as callbacks:
            metric = config.evaluation.best_metric
            train(session, checkpoints, state, evaluate=evaluate, best_metric=metric, callbacks=callbacks)
    except (DataError, WorkerError):
        # What is refused before the first step leaves no folder that stands in the way of the mended data; the list of
        # skipped rows stays, for it is what the message sends the user to.
        if state.step == 0 and not run.checkpoints() and not run.bad_samples.exists():
            run.clear()
        raise
    checkpoints.write_final(state)
    return state


def _inputs(config: Config) -> list[str]:
    """Names and paths of the models and data that a run reads."""
    model, data = config.model, config.data
    names = [model.model_name, model.text_model_name, model.image_model_name, config.loss.teacher_model_name]
    for source in (data.data_path, data.val_data_path, data.test_data_path):
        names += [entry.path if isinstance(entry, DataEntry) else entry for entry in data_entries(source)]
    return [name for name in names if name is not None]


def _start(config: Config, session: Session, checkpoints: Checkpoints) -> TrainState:
    """The state to train from; writes what a run's folder holds from the beginning."""
    run, resume = checkpoints.run, config.training.resume_from_checkpoint
    state = TrainState() if resume is None else checkpoints.resume(find_checkpoint(run, resume))
    session.engine.trainer.chunking_finder.restore(state.chunks)
    with disk_errors(run.path):
        if resume is None:
            run.write_record(run_record(session))  # first: it marks the folder as a run, which may be deleted
        if session.data.split is not None and session.data.validation:
            save_split(session.data.split, run.split)
        _write_config(config, run)
    num_steps, most = session.plan.num_steps, config.training.max_steps
    if most is not None and most > num_steps:
        _log.warning("epochs: %d end after %d steps, before max_steps: %d", config.training.epochs, num_steps, most)
    _log.info("training from step %d to %d in %s", state.step, session.plan.num_steps, run.path)
    return state


def _write_config(config: Config, run: RunFolder) -> None:
    """Write config.yaml, unless it says the same already: then it also says where each value came from at first."""
    once = {"resume_from_checkpoint": None, "overwrite_output_dir": False}
    lasting = dataclasses.replace(config, training=config.training.model_copy(update=once))
    if run.config.exists() and _is_config(run.config, lasting):
        return
    with atomic_file(run.config) as new:
        lasting.to_yaml(new)


def _is_config(file: Path, config: Config) -> bool:
    """Whether a file says the same. It lies in the folder of a run, so that nothing it names is imported for it."""
    try:
        return load_config(file, reading="shown").to_flat() == config.to_flat()
    except VembedError as error:
        _log.warning("%s cannot be read any more, and is written anew: %s", file, error)
        return False
