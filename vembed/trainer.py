"""Trainer: the Python front door to a run. Assemble, fit, keep the best weights, measure.

    result = Trainer("openai/clip-vit-base-patch32").train(data_path="pairs.csv", output_dir="output", epochs=3)
    predictor = Predictor(result.final)

`final/` is a copy of `best/`, the weights with the best validation figure; without validation data, the last weights.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.config import TRAIN, Config, load_config
from vembed.data.classes import class_keys
from vembed.data.loader import TrainingLoader
from vembed.data.settings import DataEntry
from vembed.data.split import save_split
from vembed.data.validation import BadSamples
from vembed.data.workers import resolve_num_workers
from vembed.errors import DataError, UsageError
from vembed.evaluation.evaluator import Evaluator
from vembed.evaluation.relevance import retrieval_set
from vembed.losses.factory import LossFactory
from vembed.losses.objective import Objective
from vembed.losses.registry import LossRegistry
from vembed.losses.teaching import compares_scores, measuring_needs, row_needs
from vembed.model.modeling import VisualRetrievalModel
from vembed.scoring import get_scorer
from vembed.training.checkpoint import Checkpoints, RunFacts
from vembed.training.dpo import Reference
from vembed.training.frozen_features import FrozenFeatures, frozen_features, items_of_rows
from vembed.training.grad_check import GradCheck, check_gradients
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.loop import Engine
from vembed.training.measure import Measurement, measure
from vembed.training.optimizer import build_optimizer, freeze_by_rate
from vembed.training.overview import Overview
from vembed.training.plan import make_plan, rows_per_batch
from vembed.training.precision import Precision, choose_precision, settle_dtypes
from vembed.training.run_data import RunData, check_every_set_teaches, read_run_data
from vembed.training.run_folder import RunFolder, check_output_dir, find_checkpoint, open_run_folder, write_json
from vembed.training.run_report import ReportSettings, RunReport, report_run
from vembed.training.schedule import build_schedule
from vembed.training.session import Session, overview, run_record, train
from vembed.training.settings import Part
from vembed.training.sizing import check_limit_of_states
from vembed.training.state import Best, Metrics, TrainState
from vembed.training.teacher import (
    StandIn,
    TeacherModel,
    TeacherOptions,
    TeacherSource,
    open_teacher,
    teacher_in_data,
    teacher_items,
)
from vembed.utils.distributed import require_one_process, seed_everything
from vembed.utils.files import disk_errors
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
        """What training would do. Trains nothing, writes nothing."""
        config = self.config(**settings)
        loaded = _load(config)
        session = _assemble(config, loaded, BadSamples(config.data))
        teacher = None if loaded.teacher is None else loaded.teacher.summary()
        return overview(session, reason=session.model.reason, teacher=teacher)

    def measure(self, num_steps: int = 5, **settings: object) -> Measurement:
        """Speed and memory of `num_steps` real steps. Keeps nothing, writes nothing."""
        config = self.config(**settings)
        session = _assemble_apart(config)
        num_workers = resolve_num_workers(config.data.num_workers)
        return measure(session.engine, session.loader, session.plan, num_steps=num_steps, num_workers=num_workers)

    def grad_check(self, num_rows: int = 8, **settings: object) -> GradCheck:
        """Plain against cached gradients of the model on its data, a few rows. Trains nothing, writes nothing."""
        config = self.config(**settings)
        few = {"batch_size": min(num_rows, rows_per_batch(config.training)), "global_batch_size": None}
        training = config.training.model_copy(update={**few, "gradient_accumulation_steps": 1})
        config = dataclasses.replace(config, training=training)
        return check_gradients(_assemble_apart(config), config.grad_cache)


@dataclass(frozen=True)
class _Loaded:
    """What is read before a run's folder is touched, so that a refusal changes nothing."""

    data: RunData
    model: VisualRetrievalModel
    objective: Objective
    frozen: Sequence[Part]
    precision: Precision
    features: FrozenFeatures | None
    teacher: TeacherModel | None


def _train(config: Config) -> TrainResult:
    configure_logging()
    check_output_dir(config.training, _inputs(config))
    run, state = _fit(config)
    held_out = config.data.test_data_path is not None or state.best is not None
    report = None
    if config.evaluation.report and held_out:
        _log.info("measuring base and tuned model")
        report = report_run(run, report_settings(config, run.config.read_text(encoding="utf-8")), run.report)
    return TrainResult(run.path, run.final, state.step, state.best, report)


def _fit(config: Config) -> tuple[RunFolder, TrainState]:
    """Train to the end; what that takes memory for is gone afterwards."""
    loaded = _with_features(_load(config))
    evaluate = _evaluation(config, loaded)
    if loaded.teacher is not None:
        loaded.teacher.fill(teacher_items(loaded.data.train, config.data))
    run = open_run_folder(config.training)
    session = _assemble(config, loaded, BadSamples(config.data, run.path), loaded.teacher)
    checkpoints = _checkpoints(config, loaded, session, run)
    state = _start(config, session, checkpoints)
    try:
        train(session, checkpoints, state, evaluate=evaluate, best_metric=config.evaluation.best_metric)
    except DataError:
        # Data that is refused before the first step leaves no folder that stands in the way of the mended data; the
        # list of skipped rows stays, for it is what the message sends the user to.
        if state.step == 0 and not run.checkpoints() and not run.bad_samples.exists():
            run.clear()
        raise
    checkpoints.write_final(state)
    return run, state


def _inputs(config: Config) -> list[str]:
    """Names and paths of the models and data that a run reads."""
    model, data = config.model, config.data
    names = [model.model_name, model.text_model_name, model.image_model_name, config.loss.teacher_model_name]
    for source in (data.data_path, data.val_data_path, data.test_data_path):
        entries = source if isinstance(source, tuple) else (source,)
        names += [entry.path if isinstance(entry, DataEntry) else entry for entry in entries]
    return [name for name in names if name is not None]


def report_settings(config: Config, config_text: str) -> ReportSettings:
    """What measuring base and tuned model takes from a config. `config_text` is shown in the report."""
    return ReportSettings(
        model=config.model,
        data=config.data,
        evaluation=config.evaluation,
        seed=config.training.seed,
        device=choose_precision(config.training).device,
        config_text=config_text,
        needs=measuring_needs(config.loss, config.loss_options),
        features=_features(config),
    )


def _load(config: Config) -> _Loaded:
    """Data and model, checked against each other, and what of the model learns."""
    require_one_process()
    features = _features(config)
    precision = choose_precision(config.training)
    resumed = config.training.resume_from_checkpoint is not None
    split = RunFolder(Path(config.training.output_dir)).split
    needs = row_needs(config.loss, config.loss_options)
    data = read_run_data(config.data, seed=config.training.seed, saved_split=split if resumed else None, needs=needs)
    teacher = open_teacher(config.loss, _teacher_options(config, precision), data.train)
    model = _load_model(config)
    if features is not None:
        features.check(model)
    for sets in data.roles.values():
        for dataset in sets:
            model.check_mode(dataset.mode)
    frozen = freeze_by_rate(model.model, config.optimizer)
    settle_dtypes(model.model, config.model, precision)
    check_limit_of_states(config.grad_cache, model.model)
    check_every_set_teaches(data, model.model)
    model.model.to(precision.device)
    return _Loaded(data, model, _objective(config, model, data, teacher), frozen, precision, features, teacher)


def _teacher_options(config: Config, precision: Precision) -> TeacherOptions:
    return TeacherOptions(
        settings=config.model.for_opening().model_copy(update={"torch_dtype": config.loss.teacher_dtype}),
        device=precision.device,
        batch_size=config.evaluation.eval_batch_size,
        max_image_pixels=config.data.max_image_pixels,
    )


def _with_features(loaded: _Loaded) -> _Loaded:
    """The model reads the features of its frozen towers, if they are to be kept."""
    if loaded.features is None:
        return loaded
    rows = items_of_rows((*loaded.data.train, *loaded.data.validation))
    return dataclasses.replace(loaded, model=loaded.features.feed(loaded.model, rows))


def _features(config: Config) -> FrozenFeatures | None:
    return frozen_features(config.training, config.model, config.optimizer, config.data)


def _objective(config: Config, model: VisualRetrievalModel, data: RunData, teacher: TeacherModel | None) -> Objective:
    """The loss, with weights of the classes that are trained on, if it learns some; on the model's device."""
    learns_classes = LossRegistry.get(config.loss.loss_type).learns_classes
    objective = LossFactory.create(
        config.loss,
        config.loss_options,
        scorer=get_scorer(model.spec.similarity, model.spec.scoring),
        dim=model.model.dim,
        normalize=model.spec.normalize,
        classes=class_keys(data.train) if learns_classes else (),
        seed=config.training.seed,
        teacher=teacher_in_data(config.loss, data.train) if teacher is None else teacher.teacher,
    )
    if objective.classes is not None:
        objective.classes.to(model.model.logit_scale.device)
    return objective


def _load_model(config: Config) -> VisualRetrievalModel:
    """The model in float32, drawn from the seed where it is new."""
    loss = LossRegistry.get(config.loss.loss_type)
    seed_everything(config.training.seed)
    model = VisualRetrievalModel.from_pretrained(
        None,
        config.model,
        temperature=config.loss.temperature,
        learn_temperature=config.loss.learn_temperature and (loss.has_temperature or compares_scores(config.loss)),
        seed=config.training.seed,
    )
    model.model.train_batch_norm = config.training.train_batch_norm
    if loss.learns_bias:
        model.model.add_bias(config.loss.temperature)
    return model.with_image_limit(config.data.max_image_pixels)


def _assemble(
    config: Config, loaded: _Loaded, bad_samples: BadSamples, teacher: TeacherSource | None = None
) -> Session:
    """The parts of the run, joined."""
    model, precision = loaded.model, loaded.precision
    loader = TrainingLoader(
        loaded.data.train,
        model.processor,
        config.data,
        batch_size=rows_per_batch(config.training),
        seed=config.training.seed,
        bad_samples=bad_samples,
    )
    plan = make_plan(config.training, loader)
    trainer = GradientCacheTrainer(
        model.model,
        model.processor,
        loaded.objective,
        settings=config.grad_cache,
        autocast=precision.autocast,
        device=precision.device,
        reference=Reference(model.model) if LossRegistry.get(config.loss.loss_type).reads_reference else None,
        teacher=teacher,
    )
    optimizer, groups = build_optimizer(model.model, config.optimizer, loaded.objective.classes)
    schedule = build_schedule(config.optimizer, plan.num_steps)
    engine = Engine(
        model.model,
        trainer,
        optimizer,
        schedule,
        precision,
        max_grad_norm=config.optimizer.max_grad_norm,
        on_nan=config.training.on_nan,
    )
    return Session(loaded.data, model, loaded.objective, engine, loader, plan, groups, loaded.frozen)


def _assemble_apart(config: Config) -> Session:
    """A run whose steps are looked at, not kept; a teacher model is stood in for."""
    loaded = _load(config)
    teacher = None if loaded.teacher is None else StandIn(loaded.teacher.facts)
    return _assemble(config, loaded, BadSamples(config.data), teacher)


def _evaluation(config: Config, loaded: _Loaded) -> Callable[[], Metrics] | None:
    """What measures the model on the validation sets; None without any."""
    if not loaded.data.validation:
        return None
    sets = [retrieval_set(dataset, config.data) for dataset in loaded.data.validation]
    evaluator = Evaluator(sets, config.evaluation)
    return lambda: evaluator.measure(loaded.model).metrics


def _checkpoints(config: Config, loaded: _Loaded, session: Session, run: RunFolder) -> Checkpoints:
    reference = session.engine.trainer.reference
    teacher = loaded.teacher
    facts = RunFacts(
        settings=config.to_flat() | ({} if teacher is None else {"weights of teacher_model_name": teacher.fingerprint}),
        defaults=config.defaults(),
        rows=session.data.rows["train"],
        provenance={
            "loss": config.loss.loss_type,
            "widths": list(loaded.objective.widths),
            "seed": config.training.seed,
            **({} if teacher is None else {"teacher": {"model": teacher.name, "weights": teacher.fingerprint}}),
        },
        start=None if reference is None else reference.start,
    )
    precision = session.engine.precision
    limit, merge = config.training.save_total_limit, not config.training.save_adapter_only
    optimizer = session.engine.optimizer
    classes = loaded.objective.classes
    return Checkpoints(run, session.model, optimizer, precision.scaler, facts, config.model, limit, merge, classes)


def _start(config: Config, session: Session, checkpoints: Checkpoints) -> TrainState:
    """The state to train from; writes what a run's folder holds from the beginning."""
    run, resume = checkpoints.run, config.training.resume_from_checkpoint
    state = TrainState() if resume is None else checkpoints.resume(find_checkpoint(run, resume))
    session.engine.trainer.keep_chunks(state.chunks)
    with disk_errors(run.path):
        _write_config(config, run)
        if session.data.split is not None and session.data.validation:
            save_split(session.data.split, run.split)
        if resume is None:
            write_json(run.record, run_record(session))
    num_steps, most = session.plan.num_steps, config.training.max_steps
    if most is not None and most > num_steps:
        _log.warning("epochs: %d end after %d steps, before max_steps: %d", config.training.epochs, num_steps, most)
    _log.info("training from step %d to %d in %s", state.step, session.plan.num_steps, run.path)
    return state


def _write_config(config: Config, run: RunFolder) -> None:
    """Write config.yaml, unless it says the same already: then it also says where each value came from at first."""
    once = {"resume_from_checkpoint": None, "overwrite_output_dir": False}
    lasting = dataclasses.replace(config, training=config.training.model_copy(update=once))
    if run.config.exists() and load_config(run.config).to_flat() == lasting.to_flat():
        return
    lasting.to_yaml(run.config)
