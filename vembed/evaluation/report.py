"""Writes what was measured: report.html, which opens from disk without a network, report.md, and metrics.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vembed.errors import VembedError
from vembed.evaluation.comparison import Comparison, SetComparison
from vembed.evaluation.protocols import MODEL_EMBEDDINGS, query_part_label
from vembed.evaluation.rendering.charts import Chart, Line, loss_chart, metric_chart
from vembed.evaluation.rendering.formatting import (
    VERDICT_MARKS,
    interval_text,
    metric_label,
    mode_label,
    percent,
    points,
)
from vembed.evaluation.rendering.sentences import distinct_figures, headline_sentence, reading_notes
from vembed.evaluation.rendering.shown_queries import choose_shown_queries
from vembed.evaluation.rendering.tables import (
    comparison_rows,
    markdown_table,
    markdown_text,
    protocol_rows,
    shown_metrics,
)
from vembed.utils.files import atomic_file
from vembed.utils.untrusted import printable

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class FactTable:
    """A titled table of a report: a header (which may be empty) and rows of words."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


@dataclass(frozen=True)
class SettingLine:
    """One key of the resolved config: its section, its value as YAML, and who set it."""

    section: str
    key: str
    value: str
    origin: str


@dataclass(frozen=True)
class ReportContent:
    """The content of a report.

    role: "test", or "validation" when those sets also chose the checkpoint. headline: the metric of the first glance.
    history: lines of metrics.jsonl. notes: sentences a reader must know. meta: goes into metrics.json as it is.
    """

    title: str
    comparison: Comparison
    headline: str
    role: str = "test"
    subtitle: str = ""
    facts: Sequence[FactTable] = ()
    history: Sequence[Line] = ()
    config: Sequence[SettingLine] = ()
    notes: Sequence[str] = ()
    gallery_size: int = 12
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    html: Path
    markdown: Path
    metrics: Path


def write_report(folder: Path, content: ReportContent) -> ReportPaths:
    """Write the three files into `folder`, each wholly or not at all.

    Raises DataError when a picture of the gallery cannot be read any more, VembedError when the disk refuses.
    """
    paths = ReportPaths(folder / "report.html", folder / "report.md", folder / "metrics.json")
    texts = {
        paths.html: html_text(content),
        paths.markdown: markdown_report(content),
        paths.metrics: json.dumps(metrics_record(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with atomic_file(path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise VembedError(f"the report could not be written to {folder}: {error}") from error
    return paths


def metrics_record(content: ReportContent) -> dict[str, object]:
    """The content of metrics.json: per model {set: {metric: value}}, intervals, composed sets by protocol, and meta."""
    comparison = content.comparison
    sets = {
        one.retrieval_set.name: {
            "mode": one.retrieval_set.mode,
            "role": content.role,
            "queries": len(one.retrieval_set.queries),
            "documents": len(one.retrieval_set.documents),
            "groups": one.retrieval_set.num_groups,
            "unmeasured_queries": one.retrieval_set.num_unmeasured,
            "skipped_rows": len(one.retrieval_set.skipped),
            "left_out_documents": len(one.retrieval_set.left_out),
            "bad_samples": [asdict(bad) for bad in (*one.retrieval_set.skipped, *one.retrieval_set.left_out)],
            "measured_on": dict(zip(comparison.labels, [result.measured_on for result in one.results], strict=True)),
        }
        for one in comparison.sets
    }
    return {
        **comparison.metrics,
        "intervals": comparison.intervals,
        "rows": {
            one.retrieval_set.name: _row_records(comparison, one)
            for one in comparison.sets
            if one.has_several_protocols
        },
        "meta": {"title": content.title, "headline": content.headline, "sets": sets, **content.meta},
    }


def markdown_report(content: ReportContent) -> str:
    """The table and the notes in Markdown."""
    sections = [f"# {markdown_text(content.title)}", markdown_text(_headline(content))]
    sections += [f"> {markdown_text(note)}" for note in _notes(content)]
    sections += [markdown_table(comparison_rows(content.comparison)), _markdown_sets(content.comparison)]
    if rows := protocol_rows(content.comparison, content.headline):
        sections += ["## Queries of text and image, every row", markdown_table(rows)]
    for table in content.facts:
        header = table.header or ("",) * len(table.rows[0])
        sections += [f"## {markdown_text(table.title)}", markdown_table([tuple(header), *map(tuple, table.rows)])]
    return "\n\n".join(sections) + "\n"


def html_text(content: ReportContent) -> str:
    """The page. Everything that comes from data or config is escaped."""
    charts = [loss_chart(content.history), metric_chart(content.history, content.headline)]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not of Markup, which is our own
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "interval": interval_text,
        "mark": lambda verdict: VERDICT_MARKS[verdict],
        "metric_label": metric_label,
        "mode_label": mode_label,
        "drawing": _drawing,
        "distinct_figures": distinct_figures,
        "headline_figure": lambda one: one.figure(content.headline),
        "shown_metrics": lambda one: shown_metrics(one, content.headline),
        "query_part_label": query_part_label,
    }
    return environment.get_template("report.html.j2").render(
        content=content,
        comparison=content.comparison,
        sentence=_headline(content),
        notes=_notes(content),
        charts=[chart for chart in charts if chart is not None],
        shown_queries=choose_shown_queries(content.comparison, content.gallery_size) if content.gallery_size else (),
        default_description=MODEL_EMBEDDINGS.description,
        full_scale=_full_scale(content.comparison.sets),
    )


def _headline(content: ReportContent) -> str:
    return headline_sentence(content.comparison, content.headline)


def _notes(content: ReportContent) -> list[str]:
    return [*reading_notes(content.comparison, content.role), *content.notes]


def _drawing(chart: Chart) -> Markup:
    """Our own drawing, which holds nothing but numbers, is the one thing that is not escaped."""
    return Markup(chart.svg)


def _full_scale(sets: Sequence[SetComparison]) -> float:
    """The largest change of any figure, so that bars compare."""
    return max([abs(figure.delta) for one in sets for figure in one.figures] + [1e-9])


def _row_records(comparison: Comparison, one: SetComparison) -> list[dict[str, object]]:
    """Every way in which a composed set was measured; query_image: "in" the gallery, "out" of it, or "absent"."""
    galleries = {True: "out", False: "in"}
    return [
        {
            "model": label,
            "query": row.protocol.part,
            "compared_by": row.protocol.description,
            "query_image": galleries[row.protocol.without_query_image] if row.gallery else "absent",
            "counts": row.protocol == result.protocol,
            "metrics": dict(row.metrics),
        }
        for label, result in zip(comparison.labels, one.results, strict=True)
        for row in result.protocol_results
    ]


def _markdown_sets(comparison: Comparison) -> str:
    header = ("set", "kind", "queries", "documents", *(f"{label} measured on" for label in comparison.labels))
    rows = [
        (
            one.retrieval_set.name,
            mode_label(one.retrieval_set.mode),
            f"{len(one.retrieval_set.queries):,}",
            f"{len(one.retrieval_set.documents):,}",
            *(result.measured_on for result in one.results),
        )
        for one in comparison.sets
    ]
    return markdown_table([header, *rows])
