"""Which figures cannot differ, against all rankings there are."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.evaluation.made import make_set
from vembed.evaluation.metrics import measure_queries
from vembed.evaluation.ranks import RelevantRanks
from vembed.evaluation.spread import choice_warnings, fixed_metrics, fixed_reason
from vembed.types import Ragged

CUT_OFFS = (1, 2, 3, 5)


def _set(relevant, num_documents, excluded=()):
    """Queries with so many relevant documents each; the last documents are excluded from the query of that number."""
    one = make_set(num_documents)
    columns = [list(range(count)) for count in relevant]
    left_out = [[num_documents - 1] if number in excluded else [] for number in range(len(relevant))]
    return replace(
        one,
        queries=one.queries[: len(relevant)],
        relevant=_ragged(columns),
        excluded=_ragged(left_out),
        groups=np.arange(len(relevant)),
    )


def _ragged(rows):
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return Ragged(values, torch.tensor([len(row) for row in rows], dtype=torch.int64))


def _values_of_all_rankings(num_relevant, num_ranked):
    """Metric -> every value it takes over the places at which the relevant documents may stand."""
    found: dict[str, set[float]] = {}
    for places in itertools.combinations(range(1, num_ranked + 1), num_relevant):
        measured = measure_queries(RelevantRanks(np.array(places), np.array([num_relevant])), CUT_OFFS)
        for metric, values in measured.items():
            found.setdefault(metric, set()).add(round(float(values[0]), 9))
    return found


@pytest.mark.parametrize("num_documents", [1, 2, 3, 5, 6])
def test_figures_are_fixed_exactly_where_no_ranking_changes_them(num_documents):
    for num_relevant, excluded in itertools.product(range(1, num_documents + 1), ((), (0,))):
        num_ranked = num_documents - len(excluded)
        if num_relevant > num_ranked:
            continue
        values = _values_of_all_rankings(num_relevant, num_ranked)
        fixed = {metric for metric, seen in values.items() if len(seen) == 1}
        assert set(fixed_metrics(_set([num_relevant], num_documents, excluded), list(values))) == fixed


def test_a_figure_is_fixed_only_if_it_is_for_every_query():
    assert fixed_metrics(_set([5, 5], 5), ["mrr", "ndcg@5", "recall@5"]) == ("mrr", "ndcg@5", "recall@5")
    assert fixed_metrics(_set([5, 4], 5), ["mrr", "ndcg@5", "recall@5"]) == ("recall@5",)


def test_the_reason_is_named():
    assert "every document is relevant to every query" in fixed_reason(_set([4, 4], 4))
    assert fixed_reason(_set([1], 8)) == "it has 8 documents"


def test_sets_that_cannot_choose_are_told_before_training():
    (warning,) = choice_warnings([_set([12] * 12, 12)], "ndcg@10")
    assert "cannot choose a checkpoint: its ndcg@10 is the same for every model, because every document" in warning
    assert "best_metric" not in warning  # no other would do
    (warning,) = choice_warnings([_set([1] * 8, 8)], "recall@10")
    assert "because it has 8 documents" in warning
    assert "another best_metric, as mrr" in warning
    (warning,) = choice_warnings([_set([1], 12)], "mrr")
    assert "has 1 query and 12 documents: too few for its mrr" in warning
    assert not list(choice_warnings([make_set(12)], "ndcg@10"))
