"""Two models on the same sets, base and tuned: every figure with its interval and the interval of the difference.

models, loaded one after the other -> results      measure_models
results -> figures, intervals, differences         compare
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vembed.evaluation.bootstrap import Interval, intervals
from vembed.evaluation.evaluator import EvaluationResult, Evaluator, SetResult
from vembed.evaluation.protocols import Rule, as_it_is
from vembed.evaluation.relevance import RetrievalSet
from vembed.evaluation.settings import EvaluationSettings
from vembed.evaluation.truncation import count_truncated
from vembed.model.modeling import VisualRetrievalModel

BASE = "base"
TUNED = "tuned"
_SEED = 0
_DELTA = "delta"


@dataclass(frozen=True)
class Figure:
    """One metric of one set, per model measured. delta_interval: of the last model's value minus the first's."""

    metric: str
    values: tuple[float, ...]
    intervals: tuple[Interval | None, ...]
    delta_interval: Interval | None = None

    @property
    def delta(self) -> float:
        """The last model's value minus the first's."""
        return self.values[-1] - self.values[0]

    @property
    def verdict(self) -> str:
        """ "better", "worse", "unclear" when the interval of the difference holds zero, "" when there is none."""
        if self.delta_interval is None:
            return ""
        if self.delta_interval.holds_zero:
            return "unclear"
        return "better" if self.delta > 0 else "worse"


@dataclass(frozen=True)
class SetComparison:
    """One set: the results of each model and the figures made from them."""

    retrieval_set: RetrievalSet
    results: tuple[SetResult, ...]
    figures: tuple[Figure, ...]

    @property
    def has_rows(self) -> bool:
        """Whether a model was measured in several ways: on parts of the query, or in a gallery without its picture."""
        return any(len(result.rows) > 1 for result in self.results)

    def figure(self, metric: str) -> Figure:
        """The figure of a metric that was measured."""
        return next(figure for figure in self.figures if figure.metric == metric)


@dataclass(frozen=True)
class Comparison:
    """All sets. labels: one per model, ("base", "tuned") or a single one."""

    labels: tuple[str, ...]
    sets: tuple[SetComparison, ...]

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Label -> set -> metric -> value."""
        return {
            label: {
                one.retrieval_set.name: {figure.metric: figure.values[number] for figure in one.figures}
                for one in self.sets
            }
            for number, label in enumerate(self.labels)
        }

    @property
    def intervals(self) -> dict[str, dict[str, dict[str, tuple[float, float] | None]]]:
        """Label, and "delta" -> set -> metric -> 95 % interval; None where there is none."""
        by_label = {
            label: {
                one.retrieval_set.name: {figure.metric: _ends(figure.intervals[number]) for figure in one.figures}
                for one in self.sets
            }
            for number, label in enumerate(self.labels)
        }
        if len(self.labels) > 1:
            by_label[_DELTA] = {
                one.retrieval_set.name: {figure.metric: _ends(figure.delta_interval) for figure in one.figures}
                for one in self.sets
            }
        return by_label


@dataclass(frozen=True)
class Candidate:
    """A model to measure: what figures call it, how to load it, and which of its vectors count."""

    label: str
    load: Callable[[], VisualRetrievalModel]
    rule: Rule = as_it_is


def measure_models(
    sets: Sequence[RetrievalSet], candidates: Sequence[Candidate], settings: EvaluationSettings
) -> Comparison:
    """Measure each candidate on every set, base first; one model is in memory at a time.

    Raises DataError for an image that cannot be read, ModelError for a set whose mode a model cannot take.
    """
    measured = {candidate.label: _measure(sets, candidate, settings) for candidate in candidates}
    return compare(sets, measured, samples=settings.bootstrap_samples)


def compare(sets: Sequence[RetrievalSet], measured: Mapping[str, EvaluationResult], *, samples: int) -> Comparison:
    """What each model measured (label -> result, base first) on `sets`, with bootstrap intervals over groups."""
    rows = [
        SetComparison(one, results, _figures(one, results, samples))
        for one, results in zip(sets, zip(*(result.sets for result in measured.values()), strict=True), strict=True)
    ]
    return Comparison(tuple(measured), tuple(rows))


def _measure(sets: Sequence[RetrievalSet], candidate: Candidate, settings: EvaluationSettings) -> EvaluationResult:
    model = candidate.load()
    result = Evaluator(sets, settings).measure(model, candidate.rule)
    counted = [
        replace(one, num_truncated=count_truncated(model, retrieval_set))
        for one, retrieval_set in zip(result.sets, sets, strict=True)
    ]
    return EvaluationResult(tuple(counted))


def _figures(retrieval_set: RetrievalSet, results: tuple[SetResult, ...], samples: int) -> tuple[Figure, ...]:
    """All models and their difference are measured on the same draws."""
    values = {
        (metric, str(number)): per_query
        for number, result in enumerate(results)
        for metric, per_query in result.per_query.items()
    }
    if len(results) > 1:
        for metric, first in results[0].per_query.items():
            values[metric, _DELTA] = results[-1].per_query[metric] - first
    found = intervals(values, retrieval_set.groups, samples=samples, seed=_SEED)
    return tuple(
        Figure(
            metric=metric,
            values=tuple(result.metrics[metric] for result in results),
            intervals=tuple(found.get((metric, str(number))) for number in range(len(results))),
            delta_interval=found.get((metric, _DELTA)),
        )
        for metric in results[0].per_query
    )


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)
