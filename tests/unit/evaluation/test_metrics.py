"""Metrics against worked examples, a naive loop, and sentence-transformers."""

import math

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import dot_score

from vembed.evaluation.metrics import measure_queries
from vembed.evaluation.ranks import RelevantRanks, rank_relevant
from vembed.types import Ragged

CUT_OFFS = (1, 3, 10)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(
        torch.tensor([value for row in rows for value in row], dtype=torch.int64), torch.tensor([len(r) for r in rows])
    )


def random_case(num_queries: int, num_documents: int, seed: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Scores without near-ties, and one to five relevant documents per query."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(num_documents, generator=generator) for _ in range(num_queries)]
    scores = torch.stack(orders) / num_documents - 0.5
    relevant = []
    for _ in range(num_queries):
        count = int(torch.randint(1, 6, (), generator=generator))
        relevant.append(torch.randperm(num_documents, generator=generator)[:count].tolist())
    return scores, relevant


def naive_metrics(scores: torch.Tensor, relevant: list[list[int]]) -> dict[str, list[float]]:
    """Each formula again, as a loop over a sorted list of documents."""
    figures: dict[str, list[float]] = {}
    for row, wanted in zip(scores.tolist(), relevant, strict=True):
        order = sorted(range(len(row)), key=lambda number: -row[number])
        found = [document in wanted for document in order]
        for k in CUT_OFFS:
            gain = sum(1 / math.log2(2 + place) for place in range(k) if place < len(found) and found[place])
            ideal = sum(1 / math.log2(2 + place) for place in range(min(k, len(wanted))))
            figures.setdefault(f"recall@{k}", []).append(sum(found[:k]) / len(wanted))
            figures.setdefault(f"hit_rate@{k}", []).append(float(any(found[:k])))
            figures.setdefault(f"ndcg@{k}", []).append(gain / ideal)
        places = [place + 1 for place, good in enumerate(found) if good]
        figures.setdefault("mrr", []).append(1 / places[0])
        figures.setdefault("map", []).append(np.mean([(i + 1) / place for i, place in enumerate(places)]))
    return figures


def test_one_query_worked_out_by_hand():
    """Relevant at ranks 2 and 4 of 5: AP = (1/2 + 2/4) / 2, nDCG@3 = (1/log2(3)) / (1 + 1/log2(3))."""
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    figures = measure_queries(rank_relevant(scores, ragged([[1, 3]])), (1, 3, 5))
    assert figures["recall@1"] == figures["hit_rate@1"] == figures["ndcg@1"] == 0
    assert figures["recall@3"] == 0.5
    assert figures["hit_rate@3"] == 1
    assert figures["recall@5"] == 1
    assert figures["mrr"] == 0.5
    assert figures["map"] == 0.5
    assert figures["ndcg@3"] == pytest.approx(0.386853, abs=1e-6)
    assert figures["ndcg@5"] == pytest.approx((0.630930 + 0.430677) / 1.630930, abs=1e-6)


def test_recall_cannot_reach_one_with_more_relevant_documents_than_places():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
    figures = measure_queries(rank_relevant(scores, ragged([[0, 1, 2]])), (1, 2))
    assert figures["recall@1"] == pytest.approx(1 / 3)
    assert figures["recall@2"] == pytest.approx(2 / 3)
    assert figures["ndcg@2"] == 1  # no order of two documents is better


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_a_naive_loop(seed):
    scores, relevant = random_case(30, 40, seed)
    expected = naive_metrics(scores, relevant)
    figures = measure_queries(rank_relevant(scores, ragged(relevant)), CUT_OFFS)
    assert set(figures) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(figures[name], values, rtol=1e-12, err_msg=name)


def test_metrics_equal_sentence_transformers():
    """Recall and MAP@k there are cut and divided differently, so only what is defined alike is compared."""
    scores, relevant = random_case(25, 40, seed=7)
    names = [str(number) for number in range(40)]
    evaluator = InformationRetrievalEvaluator(
        queries={str(number): "" for number in range(25)},
        corpus=dict.fromkeys(names, ""),
        relevant_docs={str(number): {names[d] for d in documents} for number, documents in enumerate(relevant)},
        mrr_at_k=[40],
        ndcg_at_k=[3, 10],
        accuracy_at_k=[1, 3, 10],
        precision_recall_at_k=[1, 3, 10],
        map_at_k=[40],
        score_functions={"dot": dot_score},
    )
    results = [
        [{"corpus_id": names[d], "score": row[d]} for d in sorted(range(40), key=lambda d: -row[d])]
        for row in scores.tolist()
    ]
    theirs = evaluator.compute_metrics(results)
    ours = {
        name: values.mean()
        for name, values in measure_queries(rank_relevant(scores, ragged(relevant)), CUT_OFFS).items()
    }
    compared = {
        "mrr": theirs["mrr@k"][40],
        "map": theirs["map@k"][40],
        "ndcg@3": theirs["ndcg@k"][3],
        "ndcg@10": theirs["ndcg@k"][10],
    }
    compared |= {f"hit_rate@{k}": theirs["accuracy@k"][k] for k in CUT_OFFS}
    compared |= {f"recall@{k}": theirs["recall@k"][k] for k in CUT_OFFS}
    assert len(compared) == 10
    for name, value in compared.items():
        assert ours[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_constant_embedding_gets_nothing(dtype):
    """Ties do not flatter: every document that scores the same is ahead of the relevant one."""
    scores = torch.full((4, 50), 0.99, dtype=dtype).float()
    figures = measure_queries(rank_relevant(scores, ragged([[0], [1], [49], [7]])), (1, 10))
    for name in ("recall@1", "recall@10", "hit_rate@10", "ndcg@10"):
        assert figures[name].tolist() == [0, 0, 0, 0]
    assert figures["mrr"].tolist() == [1 / 50] * 4


def test_embeddings_of_zeros_get_nothing():
    assert rank_relevant(torch.zeros(2, 9), ragged([[0], [4, 5]])).values.tolist() == [9, 8, 9]


def test_a_constant_embedding_with_rounding_noise_gets_nothing():
    noise = 1e-7 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    ranks = rank_relevant(0.99 + noise, ragged([[number % 50] for number in range(200)]))
    assert (ranks.values == 50).all()


def test_ties_among_relevant_documents_cost_nothing():
    scores = torch.tensor([[0.9, 0.9, 0.9, 0.1]])
    assert rank_relevant(scores, ragged([[0, 1, 2]])).values.tolist() == [1, 2, 3]


def test_a_tie_with_another_document_counts_against_the_relevant_one():
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1]])
    assert rank_relevant(scores, ragged([[0, 2, 4]])).values.tolist() == [1, 4, 5]


def test_excluded_documents_take_no_rank():
    scores = torch.tensor([[-math.inf, 0.5, 0.4], [0.5, -math.inf, 0.6]])
    assert rank_relevant(scores, ragged([[2], [0, 2]])).values.tolist() == [2, 1, 2]


def test_ranks_hold_for_scores_of_any_size():
    scores, relevant = random_case(20, 30, seed=3)
    plain = rank_relevant(scores, ragged(relevant))
    for factor in (1e-6, 1e6):
        np.testing.assert_array_equal(rank_relevant(scores * factor, ragged(relevant)).values, plain.values)


def test_a_query_with_every_document_relevant_is_perfect():
    figures = measure_queries(RelevantRanks(np.arange(1, 13), np.array([12])), (1, 10))
    assert figures["map"] == figures["mrr"] == figures["ndcg@10"] == 1
    assert figures["recall@10"] == pytest.approx(10 / 12)
