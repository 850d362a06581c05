"""The work of `vembed evaluate`: measure a finished run, an untuned config, or any model on data of your own.

vembed evaluate output                                     base and final/, on the run's test sets; RUN/report/
vembed evaluate my.yaml                                    the model as it is before training
vembed evaluate MODEL --test_data_path pairs.jsonl         a folder or a hub id
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vembed.assembly import report_settings
from vembed.configuration.layers import Overrides
from vembed.entrypoints.evaluation_target import EvaluationTarget, resolve_target
from vembed.errors import UsageError
from vembed.evaluation.comparison import BASE, Comparison, ModelToMeasure, measure_models
from vembed.evaluation.protocols import base_protocols, model_protocols
from vembed.evaluation.rendering.sentences import headline_sentence, reading_notes
from vembed.evaluation.rendering.tables import comparison_rows, protocol_rows, text_table
from vembed.evaluation.report import ReportContent, ReportPaths, write_report
from vembed.training.run.facts import setting_lines
from vembed.training.run.folder import RunFolder, run_around
from vembed.training.run.report import ReportSettings, UntunedModel, held_out_data, readable_sets, report_run
from vembed.training.run.titles import model_title
from vembed.utils.lock import lock_folder
from vembed.utils.untrusted import is_folder

MODEL = "model"


@dataclass(frozen=True)
class Evaluation:
    """The metrics: label ("base", "tuned", or "model") -> set -> metric -> value; tables of them; the report's files.

    rows: a table of every protocol by which queries of text and image were measured, "" without any.
    """

    metrics: Mapping[str, Mapping[str, Mapping[str, float]]]
    sentence: str
    table: str
    notes: tuple[str, ...]
    paths: ReportPaths | None
    rows: str = ""

    def text(self) -> str:
        """The evaluation for a terminal."""
        lines = [self.table, "", *([self.rows, ""] if self.rows else []), self.sentence, *self.notes]
        if self.paths is not None:
            lines += ["", f"report   {self.paths.html}", f"metrics  {self.paths.metrics}"]
        return "\n".join(lines)


def evaluate(target: str | Path, overrides: Overrides = (), *, report_dir: str | Path | None = None) -> Evaluation:
    """Measure a run's folder, a YAML config, or a model (folder or hub id, with test_data_path among the overrides).

    overrides: config keys, as a mapping or as the words of a command line. The report is written into report_dir.
    Without one, a run measured on its own data writes its own report folder, and all else writes nothing.
    Raises UsageError, DataError, ModelError.
    """
    return evaluate_target(resolve_target(target, overrides), report_dir=report_dir)


def evaluate_target(target: EvaluationTarget, *, report_dir: str | Path | None = None) -> Evaluation:
    """As `evaluate`, of a target that was resolved."""
    if report_dir is not None and not str(report_dir).strip():
        raise UsageError("the folder for the report (--output_dir) is empty; name one, or leave it out")
    folder = None if report_dir is None else Path(report_dir)
    settings = report_settings(target.config, target.config_text)
    if target.run is None:
        with _held(folder):
            return _evaluate_untuned(target, settings, folder)
    if folder is None and target.on_own_data:
        folder = _own_report(target.run)
    with _held(folder):
        report = report_run(target.run, settings, folder, on_own_data=target.on_own_data)
    metric = target.config.evaluation.best_metric
    return _evaluation(report.comparison, metric, role=report.role, paths=report.paths, notes=report.notes)


def _own_report(run: RunFolder) -> Path:
    """The run's report folder. Raises UsageError for a link that leads out of the run, which others may have made."""
    leads_out = not Path(os.path.realpath(run.report)).is_relative_to(os.path.realpath(run.path))
    if leads_out or (run.report.is_symlink() and not is_folder(str(run.report))):
        raise UsageError(
            f"{run.report} is a link that leads out of the run's folder; write the report elsewhere, with --output_dir"
        )
    return run.report


@contextmanager
def _held(report: Path | None) -> Iterator[None]:
    """Keep other processes out of the run that the report is written into while it is measured and written, if any.

    Raises UsageError while that run is still trained, or reported: its folder is its own.
    """
    if report is not None and "\0" in str(report):
        raise UsageError(f"output_dir {str(report)!r} holds a null character, which no folder's name has")
    run = None if report is None else RunFolder(report) if RunFolder(report).record.is_file() else run_around(report)
    if run is None:
        yield
        return
    with lock_folder(run.path, f"the run {run.path}", "write the report elsewhere, with --output_dir"):
        yield


def _evaluate_untuned(target: EvaluationTarget, settings: ReportSettings, folder: Path | None) -> Evaluation:
    config = target.config
    held_out = held_out_data(config.data, seed=config.training.seed, needs=settings.needs)
    untuned = UntunedModel(settings)
    sets = readable_sets(held_out, config.data, untuned)
    label, protocol = (BASE, base_protocols) if target.is_base else (MODEL, model_protocols)
    comparison = measure_models(sets, [ModelToMeasure(label, untuned.take, protocol)], config.evaluation)
    content = ReportContent(
        title=model_title(config.model),
        comparison=comparison,
        headline=config.evaluation.best_metric,
        role=held_out.role,
        config=setting_lines(settings.config_text),
        gallery_size=config.evaluation.gallery_size,
    )
    paths = None if folder is None else write_report(folder, content)
    return _evaluation(comparison, config.evaluation.best_metric, role=held_out.role, paths=paths)


def _evaluation(
    comparison: Comparison, metric: str, *, role: str, paths: ReportPaths | None, notes: Sequence[str] = ()
) -> Evaluation:
    rows = protocol_rows(comparison, metric)
    return Evaluation(
        metrics=comparison.metrics,
        sentence=headline_sentence(comparison, metric),
        table=text_table(comparison_rows(comparison)),
        notes=(*reading_notes(comparison, role), *notes),
        paths=paths,
        rows=text_table(rows) if rows else "",
    )
