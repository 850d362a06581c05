"""The report of a finished run: base and tuned model on its test sets, else on its validation sets.

Everything is read from the run's folder and its settings, so that a report can be written again at any time.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vembed.data.dataset import VisualRetrievalDataset, load_datasets
from vembed.data.settings import DataSettings
from vembed.data.splits.overlap import Overlap
from vembed.data.splits.split import load_split, split_validation
from vembed.errors import ConfigError, DataError, UsageError
from vembed.evaluation.comparison import BASE, TUNED, Comparison, ModelToMeasure, measure_models
from vembed.evaluation.protocols import base_protocols
from vembed.evaluation.relevance import RetrievalSet, retrieval_set
from vembed.evaluation.report import ReportContent, ReportPaths, write_report
from vembed.evaluation.settings import EvaluationSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.training.frozen_features import FrozenFeatures, items_of_sets
from vembed.training.run.data import find_overlaps
from vembed.training.run.facts import read_overlaps, read_run_facts, setting_lines
from vembed.training.run.folder import RunFolder
from vembed.training.run.titles import model_title, tuned_before
from vembed.types import RowNeeds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportSettings:
    """The settings that a report reads. config_text: as `Config.yaml_text` gives it, to be shown.

    needs: of the rows that are evaluated. features: the cache of frozen towers' features; None without one.
    """

    model: ModelSettings
    data: DataSettings
    evaluation: EvaluationSettings
    seed: int
    device: torch.device
    config_text: str
    needs: RowNeeds
    features: FrozenFeatures | None = None


@dataclass(frozen=True)
class HeldOut:
    """Data sets to measure on, and their role in the run: "test", or "validation" when they chose the checkpoint."""

    role: str
    datasets: Sequence[VisualRetrievalDataset]


@dataclass(frozen=True)
class RunReport:
    """The measured figures, and the paths of the written report; None where none was written.

    notes: sentences about the run without which the figures would be misread.
    """

    role: str
    comparison: Comparison
    paths: ReportPaths | None
    notes: Sequence[str] = ()


def report_run(run: RunFolder, settings: ReportSettings, folder: Path | None, *, on_own_data: bool = True) -> RunReport:
    """Measure the base model and `final/`, and write the report into `folder` (None: nowhere).

    on_own_data: the data of the settings is that of the run, which has noted what of it was trained on.

    Raises UsageError when the run has not finished, DataError when its data has gone.
    """
    if not run.final.is_dir():
        raise UsageError(
            f"{run.path} has no {run.final.name}/, so its training has not finished; go on with"
            " resume_from_checkpoint: latest, or evaluate one of its checkpoints with test_data_path"
        )
    held_out = held_out_data(settings.data, seed=settings.seed, needs=settings.needs, saved_split=run.split)
    untuned = UntunedModel(settings)
    sets = readable_sets(held_out, settings.data, untuned)
    candidates = (
        ModelToMeasure(BASE, lambda: _with_features(untuned.take(), settings, sets), base_protocols),
        ModelToMeasure(TUNED, lambda: _with_features(_load_final(run, settings), settings, sets)),
    )
    overlaps = read_overlaps(run, held_out.role) if on_own_data else _overlaps(run, settings, held_out)
    comparison = measure_models(sets, candidates, settings.evaluation)
    content = _content(run, settings, held_out.role, comparison, overlaps)
    paths = None if folder is None else write_report(folder, content)
    return RunReport(held_out.role, comparison, paths, content.notes)


def held_out_data(settings: DataSettings, *, seed: int, needs: RowNeeds, saved_split: Path | None = None) -> HeldOut:
    """The test sets, else the validation sets, else the rows that are (or would be) split off for validation.

    Raises DataError when there is nothing to measure on, or when the data has changed since the split was saved.
    """
    if settings.test_data_path is not None:
        return HeldOut("test", load_datasets(settings.test_data_path, settings, needs=needs))
    if settings.val_data_path is not None:
        return HeldOut("validation", load_datasets(settings.val_data_path, settings, needs=needs))
    if settings.data_path is None or not settings.val_fraction:
        raise DataError("there is no data to measure on; name it with test_data_path")
    everything = load_datasets(settings.data_path, settings, needs=needs)
    if saved_split is not None and saved_split.exists():
        return HeldOut("validation", load_split(saved_split, everything).validation)
    return HeldOut("validation", split_validation(everything, settings.val_fraction, seed).validation)


class UntunedModel:
    """The model as it is before training, opened once: for what it can read, if that is asked, and to be measured."""

    def __init__(self, settings: ReportSettings) -> None:
        self._settings = settings
        self._model: VisualRetrievalModel | None = None

    def look(self) -> VisualRetrievalModel:
        """The model, kept for `take`."""
        if self._model is None:
            self._model = _load_untuned(self._settings)
        return self._model

    def take(self) -> VisualRetrievalModel:
        """The model, which is not kept, so that the next one finds its memory free."""
        model, self._model = self.look(), None
        return model


def readable_sets(held_out: HeldOut, data: DataSettings, untuned: UntunedModel) -> list[RetrievalSet]:
    """The retrieval sets. With on_bad_sample: skip, without what the model cannot read, which training does not change.

    What it has no embedding of is known with its weights alone, so it is opened for that.
    """
    read = untuned.look().processor.load if data.on_bad_sample == "skip" else None
    return [retrieval_set(dataset, data, read) for dataset in held_out.datasets]


def _load_untuned(settings: ReportSettings) -> VisualRetrievalModel:
    """The model as it is before training: pretrained weights, and new ones drawn from the run's seed."""
    # Without what concerns training alone; new adapters would change nothing, and cost time.
    plain = {"freeze": (), "freeze_layers": {}, "use_lora": False, "gradient_checkpointing": False}
    model = VisualRetrievalModel.from_pretrained(None, settings.model.model_copy(update=plain), seed=settings.seed)
    return for_inference(model, settings)


def for_inference(model: VisualRetrievalModel, settings: ReportSettings) -> VisualRetrievalModel:
    """The model without gradients, on its device, refusing images over the data's limit."""
    model.model.requires_grad_(False).to(settings.device)
    return model.with_image_limit(settings.data.max_image_pixels)


def _load_final(run: RunFolder, settings: ReportSettings) -> VisualRetrievalModel:
    return for_inference(VisualRetrievalModel.from_pretrained(str(run.final), settings.model.for_opening()), settings)


def _with_features(
    model: VisualRetrievalModel, settings: ReportSettings, sets: Sequence[RetrievalSet]
) -> VisualRetrievalModel:
    """The model, reading cached features of its frozen towers if the run caches them: base and tuned share them."""
    return model if settings.features is None else settings.features.attach(model, items_of_sets(sets))


def _overlaps(run: RunFolder, settings: ReportSettings, held_out: HeldOut) -> tuple[Overlap, ...]:
    """What sets that are not the run's own share with its training rows; said to be unknown if these have gone."""
    sets, needs = held_out.datasets, settings.needs
    try:
        return find_overlaps(settings.data, held_out.role, sets, saved_split=run.split, needs=needs)
    except (DataError, ConfigError) as error:
        _log.warning("whether the data of these figures was trained on is not known: %s", error)
        return ()


def _content(
    run: RunFolder, settings: ReportSettings, role: str, comparison: Comparison, overlaps: Sequence[Overlap]
) -> ReportContent:
    facts = read_run_facts(run)
    before = tuned_before(settings.model)
    shared = [f"{overlap}." for overlap in overlaps if not overlap.by_design]
    return ReportContent(
        title=f"{model_title(settings.model)}, tuned",
        subtitle=facts.summary,
        comparison=comparison,
        headline=settings.evaluation.best_metric,
        role=role,
        facts=facts.tables,
        history=facts.history,
        config=setting_lines(settings.config_text),
        notes=[*shared, *([] if before is None else [f"{before}."]), *facts.notes],
        gallery_size=settings.evaluation.gallery_size,
        meta={
            "run": str(run.path),
            "base": model_title(settings.model),
            **facts.meta,
            "overlaps": list(map(asdict, overlaps)),
        },
    )
