"""A config becomes the parts of a run: data and model, checked against each other, then step, loader and plan."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.config import Config
from vembed.data.batches.loader import TrainingLoader
from vembed.data.splits.components import class_keys
from vembed.data.validation import BadSamples
from vembed.evaluation.evaluator import Evaluator
from vembed.evaluation.relevance import retrieval_set
from vembed.evaluation.spread import choice_warnings
from vembed.losses.factory import LossFactory
from vembed.losses.lacks import BatchCheck, batch_check
from vembed.losses.objective import Objective
from vembed.losses.registry import LossRegistry
from vembed.losses.teacher_needs import compares_scores, evaluation_needs, row_needs
from vembed.model.learning.scale import add_bias
from vembed.model.modeling import VisualRetrievalModel
from vembed.scoring import get_scorer
from vembed.training.distillation.teacher import RandomTeacher, TeacherSource, open_teacher, precomputed_teacher
from vembed.training.distillation.teacher_model import TeacherModel, TeacherOptions
from vembed.training.dpo import Reference
from vembed.training.frozen_features import FrozenFeatures, frozen_features, items_of_rows
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.loop import Engine
from vembed.training.optimizer import build_optimizer, freeze_by_rate
from vembed.training.plan import make_plan, rows_per_batch
from vembed.training.precision import Precision, cast_trainable_to_float32, choose_precision
from vembed.training.run.checkpoint import Checkpoints, RunIdentity
from vembed.training.run.data import RunData, check_datasets_train, read_run_data
from vembed.training.run.folder import RunFolder
from vembed.training.run.learnable import check_rows_teach
from vembed.training.run.report import ReportSettings
from vembed.training.schedule import build_schedule
from vembed.training.session import Session
from vembed.training.settings import Part
from vembed.training.state import Metrics
from vembed.training.step.auto_chunking import check_hidden_state_limit
from vembed.training.trackers.registry import CallbackRegistry, OpenTracker
from vembed.utils.distributed import require_one_process, seed_everything

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """The parts of a run that are read before its folder is touched, so that a refusal changes nothing."""

    data: RunData
    model: VisualRetrievalModel
    objective: Objective
    frozen: Sequence[Part]
    precision: Precision
    features: FrozenFeatures | None
    teacher: TeacherModel | None
    trackers: Mapping[str, OpenTracker]


def load(config: Config) -> Loaded:
    """Data and model, checked against each other, and what of the model learns."""
    require_one_process()
    trackers = {name: CallbackRegistry.get(name) for name in config.training.report_to}
    features = features_of(config)
    precision = choose_precision(config.training)
    resumed = config.training.resume_from_checkpoint is not None
    split = RunFolder(Path(config.training.output_dir)).split
    needs = row_needs(config.loss, config.loss_options)
    data = read_run_data(config.data, seed=config.training.seed, saved_split=split if resumed else None, needs=needs)
    check_rows_teach(data.train, config.data, _batch_check(config), batch_size=rows_per_batch(config.training))
    teacher = open_teacher(config.loss, _teacher_options(config, precision), data.train)
    model = _load_model(config)
    if features is not None:
        features.check(model)
    for sets in data.roles.values():
        for dataset in sets:
            model.check_mode(dataset.mode)
    frozen = freeze_by_rate(model.model, config.optimizer)
    cast_trainable_to_float32(model.model, config.model, precision)
    check_hidden_state_limit(config.grad_cache, model.model)
    check_datasets_train(data, model.model)
    model.model.to(precision.device)
    objective = _objective(config, model, data, teacher)
    return Loaded(data, model, objective, frozen, precision, features, teacher, trackers)


def with_features(loaded: Loaded) -> Loaded:
    """The model reading its frozen towers' features from the cache on disk, if that is on; what it lacks is made first.

    Every training and validation row that the cache has not seen is encoded and written, which may take as long as an
    epoch of these towers.
    """
    if loaded.features is None:
        return loaded
    rows = items_of_rows((*loaded.data.train, *loaded.data.validation))
    return dataclasses.replace(loaded, model=loaded.features.attach(loaded.model, rows))


def assemble(config: Config, loaded: Loaded, bad_samples: BadSamples, teacher: TeacherSource | None = None) -> Session:
    """The parts of the run, joined."""
    model, precision = loaded.model, loaded.precision
    loader = TrainingLoader(
        loaded.data.train,
        model.processor if loaded.teacher is None else loaded.teacher.reading(model.processor),
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
        check=_batch_check(config),
    )
    return Session(loaded.data, model, loaded.objective, engine, loader, plan, groups, loaded.frozen)


def assemble_trial(config: Config) -> Session:
    """A run whose steps are looked at, not kept; a teacher model is stood in for."""
    loaded = load(config)
    teacher = None if loaded.teacher is None else RandomTeacher(loaded.teacher.facts)
    return assemble(config, loaded, BadSamples(config.data), teacher)


def checkpoints_of(config: Config, loaded: Loaded, session: Session, run: RunFolder) -> Checkpoints:
    """The writer and reader of the run's checkpoints, which refuses those of another run."""
    reference = session.engine.trainer.reference
    teacher = loaded.teacher
    precision = session.engine.precision
    identity = RunIdentity(
        settings=config.to_flat()
        | {"mixed_precision": precision.mixed_precision}  # not `auto`, which stands for another one on another machine
        | ({} if teacher is None else {"weights of teacher_model_name": teacher.fingerprint}),
        defaults=config.defaults(),
        rows=session.data.rows["train"],
        provenance={
            "loss": config.loss.loss_type,
            "widths": list(loaded.objective.widths),
            "seed": config.training.seed,
            **({} if teacher is None else {"teacher": {"model": teacher.name, "weights": teacher.fingerprint}}),
        },
        start_checksum=None if reference is None else reference.start_checksum,
    )
    limit, merge = config.training.save_total_limit, not config.training.save_adapter_only
    optimizer = session.engine.optimizer
    classes = loaded.objective.classes
    return Checkpoints(run, session.model, optimizer, precision.scaler, identity, config.model, limit, merge, classes)


def validation_function(config: Config, loaded: Loaded) -> Callable[[], Metrics] | None:
    """A function that measures the model on the validation sets, or None without any; warns if they cannot choose."""
    if not loaded.data.validation:
        return None
    read = loaded.model.processor.load
    sets = [retrieval_set(dataset, config.data, read) for dataset in loaded.data.validation]
    for warning in choice_warnings(sets, config.evaluation.best_metric):
        _log.warning("%s", warning)
    evaluator = Evaluator(sets, config.evaluation)
    return lambda: evaluator.measure(loaded.model).metrics


def report_settings(config: Config, config_text: str) -> ReportSettings:
    """The settings by which base and tuned model are measured. `config_text` is shown in the report."""
    return ReportSettings(
        model=config.model,
        data=config.data,
        evaluation=config.evaluation,
        seed=config.training.seed,
        device=choose_precision(config.training).device,
        config_text=config_text,
        needs=evaluation_needs(config.loss, config.loss_options),
        features=features_of(config),
    )


def features_of(config: Config) -> FrozenFeatures | None:
    """The features of frozen towers that are kept on disk, or None without cache_frozen_features."""
    return frozen_features(config.training, config.model, config.optimizer, config.data)


def _teacher_options(config: Config, precision: Precision) -> TeacherOptions:
    return TeacherOptions(
        settings=config.model.for_opening().model_copy(update={"torch_dtype": config.loss.teacher_dtype}),
        device=precision.device,
        batch_size=config.evaluation.eval_batch_size,
        max_image_pixels=config.data.max_image_pixels,
    )


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
        teacher=precomputed_teacher(config.loss, data.train) if teacher is None else teacher.teacher,
    )
    if objective.classes is not None:
        objective.classes.to(model.model.logit_scale.device)
    return objective


def _batch_check(config: Config) -> BatchCheck:
    return batch_check(config.loss, config.loss_options)


def _load_model(config: Config) -> VisualRetrievalModel:
    """The model in `torch_dtype`; new weights are drawn from the seed."""
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
        add_bias(model.model, config.loss.temperature)
    return model.with_image_limit(config.data.max_image_pixels)
