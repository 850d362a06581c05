"""What `vembed evaluate` does: measure a finished run, an untuned config, or any model on data of your own.

vembed evaluate output                                     base and final/, on the run's test sets; RUN/report/
vembed evaluate my.yaml                                    the model as it is before training
vembed evaluate MODEL --test_data_path pairs.jsonl         a folder or a hub id
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.config import Config, Purpose, load_config
from vembed.errors import UsageError
from vembed.evaluation.bases import as_base, as_it_is
from vembed.evaluation.comparison import BASE, Candidate, Comparison, measure_models
from vembed.evaluation.findings import headline_sentence, reading_notes
from vembed.evaluation.relevance import retrieval_set
from vembed.evaluation.report import ReportContent, ReportPaths, write_report
from vembed.evaluation.tables import basis_rows, comparison_rows, text_table
from vembed.trainer import report_settings
from vembed.training.run_facts import setting_lines
from vembed.training.run_folder import RunFolder
from vembed.training.run_report import held_out_data, load_untuned, model_title, report_run

MODEL = "model"
Overrides = Mapping[str, object] | Sequence[str]


@dataclass(frozen=True)
class Evaluation:
    """What was measured: label ("base", "tuned", or "model") -> set -> metric -> value; tables of it; the files.

    rows: a table of every way in which queries of text and image were measured, "" without any.
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
    folder = None if report_dir is None else Path(report_dir)
    run = RunFolder(Path(target))
    if run.config.is_file() and run.record.is_file():
        return _evaluate_run(run, overrides, folder)
    if Path(target).suffix in {".yaml", ".yml"}:
        return _evaluate_untuned(load_config(target, overrides, purpose=Purpose(("model_name",))), BASE, folder)
    config = load_config(None, _with_model(target, overrides), purpose=Purpose(("model_name",)))
    if config.data.test_data_path is None:
        raise UsageError(f"{target} is measured as a model; name the data to measure it on with --test_data_path")
    return _evaluate_untuned(config, MODEL, folder)


def _evaluate_run(run: RunFolder, overrides: Overrides, folder: Path | None) -> Evaluation:
    config = load_config(run.config, overrides, purpose=Purpose(existing=()))
    # The file itself says who set each key when the run was made; a config loaded from it says "config.yaml:12".
    text = config.yaml_text() if overrides else run.config.read_text(encoding="utf-8")
    if folder is None and config.data == load_config(run.config, purpose=Purpose(existing=())).data:
        folder = run.report
    report = report_run(run, report_settings(config, text), folder)
    return _evaluation(report.comparison, config.evaluation.best_metric, role=report.role, paths=report.paths)


def _evaluate_untuned(config: Config, label: str, folder: Path | None) -> Evaluation:
    settings = report_settings(config, config.yaml_text())
    held_out = held_out_data(config.data, seed=config.training.seed)
    sets = [retrieval_set(dataset, config.data) for dataset in held_out.datasets]
    candidate = Candidate(label, lambda: load_untuned(settings), as_base if label == BASE else as_it_is)
    comparison = measure_models(sets, [candidate], config.evaluation)
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


def _with_model(target: str | Path, overrides: Overrides) -> Overrides:
    if isinstance(overrides, Mapping):
        return {**overrides, "model_name": str(target)}
    return [*overrides, f"model_name={target}"]


def _evaluation(comparison: Comparison, metric: str, *, role: str, paths: ReportPaths | None) -> Evaluation:
    rows = basis_rows(comparison, metric)
    return Evaluation(
        metrics=comparison.metrics,
        sentence=headline_sentence(comparison, metric),
        table=text_table(comparison_rows(comparison)),
        notes=tuple(reading_notes(comparison, role)),
        paths=paths,
        rows=text_table(rows) if rows else "",
    )
