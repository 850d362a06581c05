"""Base beside tuned: values, differences, and intervals of the same draws."""

import numpy as np
import pytest

from tests.unit.evaluation.made import make_comparison, make_result, make_set
from vembed.evaluation.bootstrap import Interval, intervals
from vembed.evaluation.comparison import MetricComparison, ModelToMeasure, compare, measure_models
from vembed.evaluation.protocols import base_protocols
from vembed.evaluation.rendering.formatting import VERDICT_MARKS
from vembed.evaluation.settings import EvaluationSettings
from vembed.model.modeling import VisualRetrievalModel


def test_figures_hold_both_values_and_their_difference():
    one = make_set(40)
    base, tuned = make_result([one], 3.0), make_result([one], 0.5)
    comparison = compare([one], {"base": base, "tuned": tuned}, samples=100)
    figure = comparison.sets[0].figure("mrr")
    assert figure.values == (base.metrics["t2t"]["mrr"], tuned.metrics["t2t"]["mrr"])
    assert figure.delta == figure.values[1] - figure.values[0]
    assert comparison.metrics == {"base": base.metrics, "tuned": tuned.metrics}


def test_the_interval_of_the_difference_is_paired():
    one = make_set(40)
    base, tuned = make_result([one], 3.0).sets[0], make_result([one], 0.5).sets[0]
    figure = make_comparison([one]).sets[0].figure("recall@1")
    difference = tuned.per_query["recall@1"] - base.per_query["recall@1"]
    assert figure.delta_interval == intervals({"d": difference}, np.arange(40), samples=200, seed=0)["d"]


def test_verdicts():
    one = make_set(200)
    gained = make_comparison([one], 3.0, 0.2).sets[0].figure("mrr")
    lost = make_comparison([one], 0.2, 3.0).sets[0].figure("mrr")
    same = make_comparison([one], 1.0, 1.0).sets[0].figure("mrr")
    assert (gained.verdict, lost.verdict, same.verdict) == ("better", "worse", "unclear")


@pytest.mark.parametrize("delta", [-0.0004, 0.0004])
def test_a_change_that_is_shown_as_none_is_neither_better_nor_worse(delta):
    """Sure as it is, an arrow beside 0.0 would say something else than the figure."""
    interval = Interval(delta - 0.0001, delta + 0.0001)
    figure = MetricComparison("mrr", (0.5, 0.5 + delta), (None, None), interval)
    assert (figure.verdict, VERDICT_MARKS[figure.verdict]) == ("equal", "")
    more = MetricComparison("mrr", (0.5, 0.5 + 2 * delta), (None, None), interval)
    assert more.verdict == ("better" if delta > 0 else "worse")


def test_without_resamplings_there_are_no_intervals_and_no_verdicts():
    comparison = make_comparison([make_set()], samples=0)
    figure = comparison.sets[0].figure("mrr")
    assert figure.delta_interval is None
    assert figure.verdict == ""
    assert comparison.intervals["delta"]["t2t"]["mrr"] is None


def test_intervals_by_label_and_set():
    comparison = make_comparison([make_set(name="one"), make_set(name="two")])
    assert list(comparison.intervals) == ["base", "tuned", "delta"]
    low, high = comparison.intervals["tuned"]["two"]["ndcg@10"]
    assert low <= comparison.metrics["tuned"]["two"]["ndcg@10"] <= high


def test_a_single_model_has_no_difference():
    one = make_set()
    comparison = compare([one], {"model": make_result([one], 1.0)}, samples=50)
    assert list(comparison.metrics) == list(comparison.intervals) == ["model"]
    assert comparison.sets[0].figure("mrr").verdict == ""


def test_models_are_loaded_one_after_the_other_and_measured_by_their_rule(bert_folder):
    one = make_set(6, texts=["cat", "dog", "bird", "a red circle", "two squares", "word " * 60])
    loaded = []

    def load():
        loaded.append(VisualRetrievalModel.from_pretrained(bert_folder))
        return loaded[-1]

    candidates = [ModelToMeasure("base", load, base_protocols), ModelToMeasure("tuned", load)]
    comparison = measure_models([one], candidates, EvaluationSettings(bootstrap_samples=10))
    assert len(loaded) == 2
    assert comparison.metrics["base"] == comparison.metrics["tuned"]
    assert all(figure.delta == 0 and figure.verdict == "unclear" for figure in comparison.sets[0].figures)
    assert [result.num_truncated for result in comparison.sets[0].results] == [2, 2]
    with pytest.raises(StopIteration):
        comparison.sets[0].figure("precision@3")
