"""A comparison as tables, for the terminal and for Markdown."""

import html
import re
from collections.abc import Sequence

from vembed.evaluation.comparison import Comparison, MetricComparison, SetComparison
from vembed.evaluation.protocols import query_part_label
from vembed.evaluation.rendering.formatting import VERDICT_MARKS, interval_text, percent, points
from vembed.evaluation.rendering.sentences import distinct_figures
from vembed.utils.untrusted import printable

Row = tuple[str, ...]

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|~#])")


def comparison_rows(comparison: Comparison) -> list[Row]:
    """A header and one row per set and metric; figures in percent, differences in points.

    A difference whose interval holds zero is marked with "≈". Figures that cannot differ from another one are left out.
    """
    several = len(comparison.labels) > 1
    header = ("set", "metric", *comparison.labels) + (("change", "95 % interval", "") if several else ())
    rows = [
        (one.retrieval_set.name, figure.metric, *map(percent, figure.values)) + (_change(figure) if several else ())
        for one in comparison.sets
        for figure in distinct_figures(one)
    ]
    return [header, *rows]


def protocol_rows(comparison: Comparison, headline: str) -> list[Row]:
    """Every way in which composed queries were measured, a row each, the one that counts marked; empty without any.

    Shown are recall and the headline metric, in percent.
    """
    sets = [one for one in comparison.sets if one.has_several_protocols]
    if not sets:
        return []
    metrics = shown_metrics(sets[0], headline)
    rows = [
        (
            one.retrieval_set.name,
            label,
            query_part_label(row.protocol),
            row.protocol.description,
            row.gallery,
            *(percent(row.metrics[metric]) for metric in metrics),
            "counts" if row.protocol == result.protocol else "",
        )
        for one in sets
        for label, result in zip(comparison.labels, one.results, strict=True)
        for row in result.protocol_results
    ]
    return [("set", "model", "query", "compared by", "gallery", *metrics, ""), *rows]


def shown_metrics(one: SetComparison, headline: str) -> list[str]:
    """The metrics shown of every protocol of a set: recall at every cut-off, and the headline metric."""
    recalls = [figure.metric for figure in one.figures if figure.metric.startswith("recall@")]
    return list(dict.fromkeys([*recalls, headline]))


def text_table(rows: Sequence[Row]) -> str:
    """Rows in aligned columns, the first one a header; a column whose cells are all numbers is right-aligned.

    >>> print(text_table([("set", "mrr"), ("t2i", "7.5"), ("emoji", "10.0")]))
    set     mrr
    t2i     7.5
    emoji  10.0
    """
    columns = list(zip(*([cell.replace("\n", "\\n") for cell in row] for row in rows), strict=True))
    aligned = [_align(column) for column in columns]
    return "\n".join("  ".join(row).rstrip() for row in zip(*aligned, strict=True))


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; what a cell says is shown as it is.

    >>> print(markdown_table([("set", "mrr"), ("a|b", "7.5")]))
    | set | mrr |
    |---|---|
    | a\\|b | 7.5 |
    """
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def markdown_text(text: str) -> str:
    """Text without any meaning in Markdown or HTML, in one line."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", html.escape(printable(" ".join(text.split())), quote=False))


def _change(figure: MetricComparison) -> Row:
    return points(figure.delta), interval_text(figure.delta_interval), VERDICT_MARKS[figure.verdict]


def _align(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    numbers = all(re.fullmatch(r"[+−]?[\d.]+|", cell) for cell in column[1:])
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]
