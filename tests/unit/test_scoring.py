"""Scores against naive loops; padding is never scored, and score maths is float32."""

import pytest
import torch
from torch import Tensor

from vembed.errors import ConfigError, ModelError
from vembed.scoring import cosine, dot, get_scorer, maxsim
from vembed.types import Embeddings


def random_tokens(rows: int, tokens: int, seed: int) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, tokens, 4, generator=generator, dtype=torch.float64)
    return Embeddings(vectors, torch.rand(rows, tokens, generator=generator) > 0.4)


def naive_maxsim(queries: Embeddings, documents: Embeddings) -> Tensor:
    scores = torch.zeros(len(queries.vectors), len(documents.vectors), dtype=torch.float64)
    for i, j in torch.cartesian_prod(torch.arange(scores.shape[0]), torch.arange(scores.shape[1])).tolist():
        left = queries.vectors[i][queries.mask[i]]
        right = documents.vectors[j][documents.mask[j]]
        if len(right):
            scores[i, j] = sum(max(float(token @ other) for other in right) for token in left)
    return scores


def test_cosine_and_dot_equal_naive_loops():
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (4, 5))
    products = torch.tensor([[float(q @ d) for d in documents] for q in queries], dtype=torch.float64)
    lengths = torch.tensor([[float(q.norm() * d.norm()) for d in documents] for q in queries], dtype=torch.float64)
    assert torch.allclose(dot(Embeddings(queries), Embeddings(documents)), products)
    assert torch.allclose(cosine(Embeddings(queries), Embeddings(documents)), products / lengths)


def test_maxsim_equals_a_naive_loop_with_masks():
    queries, documents = random_tokens(5, 4, 1), random_tokens(6, 7, 2)
    documents.mask[2] = False  # a document without real tokens
    queries.mask[3] = False
    assert torch.allclose(maxsim(queries, documents), naive_maxsim(queries, documents))


def test_padding_never_beats_a_negative_similarity():
    query = Embeddings(torch.tensor([[[1.0, 0.0]]]))
    document = Embeddings(torch.tensor([[[-1.0, 0.0], [0.0, 0.0], [5.0, 0.0]]]), torch.tensor([[True, False, False]]))
    assert maxsim(query, document).tolist() == [[-1.0]]


def test_padding_of_a_query_adds_nothing():
    query = Embeddings(torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    document = Embeddings(torch.tensor([[[2.0, 0.0]]]))
    assert maxsim(query, document).tolist() == [[2.0]]


def test_the_gradient_of_maxsim_is_the_derivative_and_misses_padding():
    queries, documents = random_tokens(3, 3, 1), random_tokens(3, 4, 2)
    documents.mask[1] = False
    left, right = queries.vectors.requires_grad_(), documents.vectors.requires_grad_()

    def scores(q: Tensor, d: Tensor) -> Tensor:
        return maxsim(Embeddings(q, queries.mask), Embeddings(d, documents.mask))

    assert torch.autograd.gradcheck(scores, (left, right))
    scores(left, right).sum().backward()
    assert left.grad[~queries.mask].abs().sum() == right.grad[~documents.mask].abs().sum() == 0
    assert left.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scorer", [cosine, dot])
def test_scores_are_float32_even_under_autocast(scorer, dtype):
    vectors = torch.linspace(-3, 3, 60).view(6, 10).to(dtype)
    exact = scorer(Embeddings(vectors.double()), Embeddings(vectors.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scorer(Embeddings(vectors), Embeddings(vectors))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_vector_of_zeros_scores_zero_without_gradient():
    queries = torch.zeros(1, 3, requires_grad=True)
    scores = cosine(Embeddings(queries), Embeddings(torch.ones(2, 3)))
    assert scores.tolist() == [[0.0, 0.0]]
    assert torch.autograd.grad(scores.sum(), queries)[0].tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("scorer", [cosine, dot])
def test_nan_is_not_hidden(scorer):
    vectors = torch.tensor([[1.0, 2.0], [torch.nan, 1.0]])
    assert scorer(Embeddings(vectors), Embeddings(vectors)).isnan().tolist() == [[False, True], [True, True]]


def test_the_wrong_number_of_vectors_is_refused():
    single, several = Embeddings(torch.ones(2, 3)), Embeddings(torch.ones(2, 4, 3))
    for scorer in (cosine, dot):
        with pytest.raises(ModelError, match="one vector per row"):
            scorer(single, several)
    with pytest.raises(ModelError, match=r"\[rows, tokens, dim\]"):
        maxsim(several, single)


def test_a_models_scorer_is_found_by_its_spec():
    assert get_scorer("cosine") is cosine
    assert get_scorer("dot", "single") is dot
    assert get_scorer("cosine", "maxsim") is maxsim
    with pytest.raises(ConfigError, match="unknown scorer 'cosin'; did you mean 'cosine'"):
        get_scorer("cosin")
