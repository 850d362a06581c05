"""Two models on the same sets, base and tuned: every figure with its interval and the interval of the difference.

models, loaded one after the other -> results      measure_models
results -> figures, intervals, differences         compare
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vembed.evaluation.bootstrap import Interval, intervals
from vembed.evaluation.evaluator import EvaluationResult, Evaluator, SetResult
from vembed.evaluation.protocols import ProtocolRule, model_protocols
from vembed.evaluation.relevance import RetrievalSet
from vembed.evaluation.rendering.formatting import points
from vembed.evaluation.settings import EvaluationSettings
from vembed.evaluation.truncation import count_truncated
from vembed.model.modeling import VisualRetrievalModel

BASE = "base"
TUNED = "tuned"
_SEED = 0
_DELTA = "delta"


@dataclass(frozen=True)
class MetricComparison:
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
        """ "better", "worse", "unclear" when the interval of the difference holds zero, "" when there is none.

        "equal" for a difference that is sure but rounds to 0.0 points, which is how it is shown.
        """
        if self.delta_interval is None:
            return ""
        if self.delta_interval.contains_zero:
            return "unclear"
        if points(self.delta) == points(0):
            return "equal"
        return "better" if self.delta > 0 else "worse"


@dataclass(frozen=True)
class SetComparison:
    """One set: the results of each model and the figures made from them."""

    retrieval_set: RetrievalSet
    results: tuple[SetResult, ...]
    figures: tuple[MetricComparison, ...]

    @property
    def has_several_protocols(self) -> bool:
        """True if a model was measured in several ways: on parts of the query, or in a gallery without its picture."""
        return any(len(result.protocol_results) > 1 for result in self.results)

    def figure(self, metric: str) -> MetricComparison:
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
        """Label, and "delta" -> set -> metric -> 95 % interval, or None without one."""
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
class ModelToMeasure:
    """A model to measure: the label of its figures, how to load it, and the rule that chooses its protocols."""

    label: str
    load: Callable[[], VisualRetrievalModel]
    rule: ProtocolRule = model_protocols


def measure_models(
    sets: Sequence[RetrievalSet], models: Sequence[ModelToMeasure], settings: EvaluationSettings
) -> Comparison:
    """Measure each model on every set, base first; one of them is in memory at a time.

    Raises DataError for an image that cannot be read, ModelError for a set whose mode a model cannot take.
    """
    measured = {model.label: _measure(sets, model, settings) for model in models}
    return compare(sets, measured, samples=settings.bootstrap_samples)


def compare(sets: Sequence[RetrievalSet], measured: Mapping[str, EvaluationResult], *, samples: int) -> Comparison:
    """The results on `sets` (label -> result, base first) beside each other, with bootstrap intervals over groups."""
    rows = [
        SetComparison(one, results, _figures(one, results, samples))
        for one, results in zip(sets, zip(*(result.sets for result in measured.values()), strict=True), strict=True)
    ]
    return Comparison(tuple(measured), tuple(rows))


def _measure(sets: Sequence[RetrievalSet], entry: ModelToMeasure, settings: EvaluationSettings) -> EvaluationResult:
    model = entry.load()
    result = Evaluator(sets, settings).measure(model, entry.rule)
    counted = [
        replace(one, num_truncated=count_truncated(model, retrieval_set))
        for one, retrieval_set in zip(result.sets, sets, strict=True)
    ]
    return EvaluationResult(tuple(counted))


def _figures(retrieval_set: RetrievalSet, results: tuple[SetResult, ...], samples: int) -> tuple[MetricComparison, ...]:
    """The figures of all models; their intervals and that of the difference are made from the same resamples."""
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
        MetricComparison(
            metric=metric,
            values=tuple(result.metrics[metric] for result in results),
            intervals=tuple(found.get((metric, str(number))) for number in range(len(results))),
            delta_interval=found.get((metric, _DELTA)),
        )
        for metric in results[0].per_query
    )


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)
