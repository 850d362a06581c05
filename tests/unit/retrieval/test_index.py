"""Exact search equals sorting all scores, whatever the blocks."""

import math

import pytest
import torch

from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import ragged_tokens
from vembed.retrieval.index import NO_DOCUMENT, Budget, best_documents, score_strips, search
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings, Ragged


def random_embeddings(rows: int, dim: int = 8, seed: int = 0) -> Embeddings:
    return Embeddings(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)))


def random_tokens(rows: int, tokens: int, seed: int) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return Embeddings(torch.randn(rows, tokens, 4, generator=generator), mask)


def test_search_equals_a_sort_of_all_scores():
    queries, documents = random_embeddings(7), random_embeddings(40, seed=1)
    scores, order = cosine(queries, documents).sort(dim=1, descending=True)
    hits = search(queries, documents, cosine, k=10)
    assert torch.equal(hits.documents, order[:, :10])
    assert torch.equal(hits.scores, scores[:, :10])


@pytest.mark.parametrize("scores_at_once", [1, 39, 41, 90, 10_000])
@pytest.mark.parametrize("products_at_once", [1, 8, 50, 10_000])
def test_search_does_not_depend_on_blocks(scores_at_once, products_at_once):
    queries, documents = random_embeddings(7), random_embeddings(40, seed=1)
    budget = Budget(scores_at_once, products_at_once)
    hits = search(queries, documents, dot, k=5, budget=budget)
    whole = search(queries, documents, dot, k=5)
    assert torch.equal(hits.documents, whole.documents)
    torch.testing.assert_close(hits.scores, whole.scores)


@pytest.mark.parametrize("scores_at_once", [1, 100, 10_000])
def test_search_over_token_vectors_keeps_the_mask(scores_at_once):
    queries, documents = random_tokens(5, 6, seed=0), random_tokens(30, 9, seed=1)
    hits = search(queries, documents, maxsim, k=4, budget=Budget(scores=scores_at_once))
    expected = maxsim(queries, documents).sort(dim=1, descending=True)
    assert torch.equal(hits.documents, expected.indices[:, :4])


@pytest.mark.parametrize("numbers_at_once", [1, 100, 10_000])
def test_tokens_without_padding_score_alike_and_are_padded_in_blocks(numbers_at_once):
    queries, documents = random_tokens(5, 6, seed=0), random_tokens(30, 9, seed=1)
    documents.mask[7] = False  # a document without tokens scores 0
    budget, padded = Budget(scores=60, products=numbers_at_once), []

    def scorer(strip, block):
        padded.append((len(block.vectors), block.vectors.numel()))
        return maxsim(strip, block)

    hits = search(ragged_tokens(queries), ragged_tokens(documents), scorer, k=30, budget=budget)
    expected = maxsim(queries, documents).sort(dim=1, descending=True, stable=True)
    assert torch.equal(hits.documents, expected.indices)
    torch.testing.assert_close(hits.scores, expected.values)
    assert all(numbers <= numbers_at_once or rows == 1 for rows, numbers in padded)
    assert sum(rows for rows, _ in padded) == 30 * 3  # strips of two queries


def test_strips_are_no_larger_than_the_budget_and_cover_every_query():
    strips = list(score_strips(random_embeddings(7), random_embeddings(10), dot, budget=Budget(scores=25)))
    assert [start for start, _ in strips] == [0, 2, 4, 6]
    assert max(scores.numel() for _, scores in strips) <= 25
    assert torch.cat([scores for _, scores in strips]).shape == (7, 10)


def test_equal_scores_keep_document_order():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0]])
    for k in range(1, 8):
        assert best_documents(scores, k).documents.tolist() == [[1, 3, 2, 4, 5, 0, 6][:k]]


def test_many_equal_scores_keep_document_order():
    scores = torch.randint(0, 4, (20, 500), generator=torch.Generator().manual_seed(0)).float()
    expected = scores.sort(dim=1, descending=True, stable=True)
    hits = best_documents(scores, 300)
    assert torch.equal(hits.documents, expected.indices[:, :300])
    assert torch.equal(hits.scores, expected.values[:, :300])


def test_excluded_documents_are_never_returned():
    queries, documents = random_embeddings(4), random_embeddings(6, seed=1)
    best = search(queries, documents, cosine, k=6).documents
    excluded = Ragged(torch.tensor([int(best[0, 0]), int(best[2, 1]), int(best[2, 0])]), torch.tensor([1, 0, 2, 0]))
    hits = search(queries, documents, cosine, k=6, excluded=excluded)
    assert hits.documents[0].tolist() == [*best[0, 1:].tolist(), NO_DOCUMENT]
    assert hits.documents[1].tolist() == best[1].tolist()
    assert hits.documents[2].tolist() == [*best[2, 2:].tolist(), NO_DOCUMENT, NO_DOCUMENT]
    assert hits.scores[0, -1] == -math.inf


def test_fewer_documents_than_k_leave_places_empty():
    hits = search(random_embeddings(2), random_embeddings(3), cosine, k=5)
    assert (hits.documents[:, 3:] == NO_DOCUMENT).all()
    assert sorted(hits.documents[0, :3].tolist()) == [0, 1, 2]


def test_no_queries_and_no_documents_give_no_results():
    assert search(random_embeddings(0), random_embeddings(3), cosine, k=2).documents.shape == (0, 2)
    assert search(random_embeddings(2), random_embeddings(0), cosine, k=2).documents.tolist() == [[NO_DOCUMENT] * 2] * 2


def test_k_below_one_is_refused():
    with pytest.raises(UsageError, match="k is 0"):
        search(random_embeddings(2), random_embeddings(3), cosine, k=0)
