"""The work of `vembed train`: train, look at a run before it starts (--dry_run), or measure steps (--measure N)."""

from collections.abc import Iterator

from vembed.config import Config
from vembed.entrypoints.config import show
from vembed.evaluation.rendering.sentences import reading_notes
from vembed.evaluation.rendering.tables import comparison_rows, text_table
from vembed.trainer import Trainer, TrainResult
from vembed.training.run.report import RunReport


def train(config: Config) -> TrainResult:
    """Train as the config says."""
    return Trainer.from_config(config).train()


def dry_run(config: Config) -> str:
    """The resolved config with origins, the model, its groups, steps, rows and memory. Trains and writes nothing."""
    overview = Trainer.from_config(config).overview()
    return "\n".join([show(config), *overview.lines()])


def measure(config: Config, num_steps: int) -> str:
    """Memory and speed of `num_steps` real steps, and what limits them. Keeps and writes nothing."""
    return "\n".join(Trainer.from_config(config).measure(num_steps).lines())


def summary(result: TrainResult) -> str:
    """A finished run: what the tuned model gained, if it was measured, and where everything lies."""
    lines = [] if result.report is None else list(_report_lines(result.report))
    lines += [f"steps    {result.num_steps}", f"model    {result.final}"]
    if result.best is not None:
        best = result.best
        lines.append(f"chosen   at step {best.step}, by {best.metric} {best.value:.4f} on the validation sets")
    if result.report is not None and result.report.paths is not None:
        lines += [f"report   {result.report.paths.html}", f"metrics  {result.report.paths.metrics}"]
    return "\n".join(lines)


def _report_lines(report: RunReport) -> Iterator[str]:
    yield text_table(comparison_rows(report.comparison))
    yield ""
    yield from reading_notes(report.comparison, report.role)
    yield ""
