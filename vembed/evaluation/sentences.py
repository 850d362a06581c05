"""What a comparison says, in sentences."""

from collections.abc import Iterator, Sequence

from vembed.evaluation.comparison import Comparison, Figure, SetComparison
from vembed.evaluation.evaluator import SetResult
from vembed.evaluation.formatting import interval_words, metric_words, percent, points
from vembed.evaluation.protocols import part_words

_VALIDATION_NOTE = (
    "These figures are of the validation data, which also chose the checkpoint, so they flatter the tuned model a"
    " little. Name a test_data_path for figures that nothing was chosen by."
)


def headline_sentence(comparison: Comparison, metric: str) -> str:
    """The first set's figure, or its gain, and how many of the sets gained."""
    first = comparison.sets[0]
    figure = first.figure(metric)
    subject = f"{metric_words(metric)} on {first.retrieval_set.name}"
    if len(comparison.labels) == 1:
        return f"{subject} is {percent(figure.values[0])} %."
    interval = f", 95 % interval {interval_words(figure.delta_interval)}" if figure.delta_interval else ""
    gain = f"({points(figure.delta)} points{interval})."
    values = f"{percent(figure.values[0])} % to {percent(figure.values[-1])} %"
    return f"{subject} went from {values} {gain}" + _tally([one.figure(metric) for one in comparison.sets])


def reading_notes(comparison: Comparison, role: str) -> Iterator[str]:
    """What must be known about the sets to read their figures. role: what the sets are to the run."""
    if role == "validation" and len(comparison.labels) > 1:
        yield _VALIDATION_NOTE
    for one in comparison.sets:
        name, unmeasured = one.retrieval_set.name, one.retrieval_set.num_unmeasured
        if one.has_rows:
            yield _rows_note(comparison, one)
        if unmeasured:
            yield (
                f"{name}: {unmeasured} queries are not measured; no document besides themselves is relevant to them (a"
                " positive of score 0 or below is not)."
            )
        if one.retrieval_set.skipped:
            yield f"{name}: {len(one.retrieval_set.skipped)} rows were left out because they cannot be used."
        if one.results[-1].num_truncated:
            yield f"{name}: {one.results[-1].num_truncated} texts are longer than the model reads; their ends are cut."


def _rows_note(comparison: Comparison, one: SetComparison) -> str:
    """By which of its rows each model counts."""
    ways = (_way(label, result) for label, result in zip(comparison.labels, one.results, strict=True))
    return f"{one.retrieval_set.name}: {'; '.join(ways)}. Every row is listed below the figures."


def _way(label: str, result: SetResult) -> str:
    row = result.row
    best = f"the best of {len(result.rows)} rows, " if len({other.basis.part for other in result.rows}) > 1 else ""
    words = [f"{part_words(row.basis)} by {row.basis.words}", *([row.gallery] if row.gallery else [])]
    return f"{label} is {best}{', '.join(words)}"


def distinct_figures(one: SetComparison) -> tuple[Figure, ...]:
    """The figures without those that cannot differ from another one.

    With one relevant document per query hit rate is recall, and MAP is MRR; the first place's nDCG is the hit rate.
    """
    single = int(one.retrieval_set.relevant.counts.max()) == 1
    twins = ("hit_rate@", "map", "ndcg@1") if single else ()
    return tuple(figure for figure in one.figures if not _is_twin(figure.metric, twins))


def _is_twin(metric: str, twins: Sequence[str]) -> bool:
    return any(metric == twin or (twin.endswith("@") and metric.startswith(twin)) for twin in twins)


def _tally(figures: Sequence[Figure]) -> str:
    """How the sets fared, where there are several and intervals say so."""
    verdicts = [figure.verdict for figure in figures]
    if len(figures) < 2 or "" in verdicts:
        return ""
    if set(verdicts) == {"better"}:
        return f" All {len(figures)} sets gained."
    words = {"better": "gained", "worse": "lost", "unclear": "changed by no more than chance may"}
    counts = [f"{verdicts.count(verdict)} {text}" for verdict, text in words.items() if verdict in verdicts]
    return f" Of the {len(figures)} sets, {', '.join(counts)}."
