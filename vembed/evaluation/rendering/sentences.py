"""A comparison in sentences: its headline, and the notes that a reader of its figures needs."""

from collections.abc import Iterator, Sequence

from vembed.evaluation.comparison import Comparison, MetricComparison, SetComparison
from vembed.evaluation.evaluator import SetResult
from vembed.evaluation.protocols import query_part_label
from vembed.evaluation.rendering.formatting import interval_text, metric_label, percent, points
from vembed.evaluation.spread import fixed_metrics, fixed_reason

_VALIDATION_NOTE = (
    "These figures are of the validation data, which also chose the checkpoint, so they flatter the tuned model a"
    " little. Name a test_data_path for figures that nothing was chosen by."
)


def headline_sentence(comparison: Comparison, metric: str) -> str:
    """The first set's figure, or its gain, and how many of the sets gained."""
    first = comparison.sets[0]
    figure = first.figure(metric)
    subject = f"{metric_label(metric)} on {first.retrieval_set.name}"
    if len(comparison.labels) == 1:
        return f"{subject} is {percent(figure.values[0])} %."
    interval = f", 95 % interval {interval_text(figure.delta_interval)}" if figure.delta_interval else ""
    gain = f"({points(figure.delta)} points{interval})."
    values = f"{percent(figure.values[0])} % to {percent(figure.values[-1])} %"
    return f"{subject} went from {values} {gain}" + _tally([one.figure(metric) for one in comparison.sets])


def reading_notes(comparison: Comparison, role: str) -> Iterator[str]:
    """Sentences without which the figures would be misread. role: of the sets in the run, "test" or "validation"."""
    if role == "validation" and len(comparison.labels) > 1:
        yield _VALIDATION_NOTE
    for one in comparison.sets:
        name, unmeasured = one.retrieval_set.name, one.retrieval_set.num_unmeasured
        if one.has_several_protocols:
            yield _protocol_note(comparison, one)
        if unmeasured:
            yield (
                f"{name}: {unmeasured} queries are not measured; no document besides themselves is relevant to them (a"
                " positive of score 0 or below is not)."
            )
        skipped, left_out = one.retrieval_set.skipped, one.retrieval_set.left_out
        if skipped:
            first = skipped[0].reason
            yield f"{name}: {len(skipped)} rows were left out because they cannot be used; the first: {first}"
        if left_out:
            documents = f"{len(left_out)} documents of other rows"
            yield f"{name}: {documents} cannot be read and were left out; the first: {left_out[0].reason}"
        shown = [figure.metric for figure in distinct_figures(one)]
        if fixed := fixed_metrics(one.retrieval_set, shown):
            what = "no figure can" if len(fixed) == len(shown) else f"{', '.join(map(metric_label, fixed))} cannot"
            yield f"{name}: {what} differ between models, because {fixed_reason(one.retrieval_set)}."
        if one.results[-1].num_truncated:
            yield f"{name}: {one.results[-1].num_truncated} texts are longer than the model reads; their ends are cut."


def _protocol_note(comparison: Comparison, one: SetComparison) -> str:
    """The protocol that each model's figures are by."""
    parts = (_chosen_protocol(label, result) for label, result in zip(comparison.labels, one.results, strict=True))
    return f"{one.retrieval_set.name}: {'; '.join(parts)}. Every row is listed below the figures."


def _chosen_protocol(label: str, result: SetResult) -> str:
    row = result.chosen
    best = (
        f"the best of {len(result.protocol_results)} rows, "
        if len({other.protocol.part for other in result.protocol_results}) > 1
        else ""
    )
    words = [f"{query_part_label(row.protocol)} by {row.protocol.description}", *([row.gallery] if row.gallery else [])]
    return f"{label} is {best}{', '.join(words)}"


def distinct_figures(one: SetComparison) -> tuple[MetricComparison, ...]:
    """The figures without those that cannot differ from another one.

    With one relevant document per query hit rate is recall, and MAP is MRR; the first place's nDCG is the hit rate.
    """
    single = int(one.retrieval_set.relevant.counts.max()) == 1
    redundant = ("hit_rate@", "map", "ndcg@1") if single else ()
    return tuple(figure for figure in one.figures if not _is_one_of(figure.metric, redundant))


def _is_one_of(metric: str, names: Sequence[str]) -> bool:
    """True if the metric is one of these, of which "hit_rate@" is the hit rate at any cut-off."""
    return any(metric == name or (name.endswith("@") and metric.startswith(name)) for name in names)


def _tally(figures: Sequence[MetricComparison]) -> str:
    """How many sets gained and lost; nothing for a single set or without intervals."""
    verdicts = [figure.verdict for figure in figures]
    if len(figures) < 2 or "" in verdicts:
        return ""
    if set(verdicts) == {"better"}:
        return f" All {len(figures)} sets gained."
    words = {
        "better": "gained",
        "worse": "lost",
        "equal": "stayed as they were",
        "unclear": "changed by no more than chance may",
    }
    counts = [f"{verdicts.count(verdict)} {text}" for verdict, text in words.items() if verdict in verdicts]
    return f" Of the {len(figures)} sets, {', '.join(counts)}."
