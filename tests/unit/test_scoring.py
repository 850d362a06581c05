"""Scores against naive loops; padding is never scored, and score maths is float32."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vembed import scoring
from vembed.errors import ConfigError, ModelError
from vembed.scoring import Scorer, cosine, dot, get_scorer, maxsim
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


def whole_maxsim(queries: Embeddings, documents: Embeddings) -> Tensor:
    """From all products at once."""
    left, right = (
        torch.ones(side.vectors.shape[:2]) > 0 if side.mask is None else side.mask for side in (queries, documents)
    )
    products = torch.einsum("qtd,nsd->qtns", queries.vectors, documents.vectors)
    best = products.masked_fill(~right, -torch.inf).amax(dim=3)
    return torch.where(left[:, :, None] & right.any(dim=1), best, 0).sum(dim=1)


def scores_and_gradients(scorer: Scorer, queries: Embeddings, documents: Embeddings) -> list[Tensor]:
    """The scores, and the gradient of their weighted sum by both sides' vectors."""
    sides = [replace(side, vectors=side.vectors.clone().requires_grad_()) for side in (queries, documents)]
    scores = scorer(*sides)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (scores * weights).sum().backward()
    return [scores.detach(), *(side.vectors.grad for side in sides)]


def whole(queries: Embeddings, documents: Embeddings) -> list[Tensor]:
    return scores_and_gradients(whole_maxsim, queries, documents)


class LargestTensor(TorchDispatchMode):
    """Notes how large the largest tensor is that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


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


@pytest.mark.parametrize("tile", [1, 60, 400, 2**20])
@pytest.mark.parametrize("masked", [(True, True), (True, False), (False, True), (False, False)])
def test_maxsim_and_its_gradient_do_not_depend_on_tiles(monkeypatch, tile, masked):
    monkeypatch.setattr(scoring, "_CPU_TILE", tile)
    queries, documents = (
        side if has_mask else Embeddings(side.vectors)
        for side, has_mask in zip((random_tokens(9, 5, 1), random_tokens(12, 8, 2)), masked, strict=True)
    )
    torch.testing.assert_close(scores_and_gradients(maxsim, queries, documents), whole(queries, documents))


def test_rows_without_tokens_get_no_gradient_and_leave_the_others_theirs():
    queries, documents = random_tokens(4, 3, 1), random_tokens(5, 4, 2)
    queries.mask[[1, 3]] = False
    documents.mask[[0, 4]] = False
    torch.testing.assert_close(scores_and_gradients(maxsim, queries, documents), whole(queries, documents))
    documents.mask[:] = False
    scores, *gradients = scores_and_gradients(maxsim, queries, documents)
    assert scores.abs().sum() == gradients[0].abs().sum() == gradients[1].abs().sum() == 0


def test_the_products_of_all_tokens_never_exist(monkeypatch):
    monkeypatch.setattr(scoring, "_CPU_TILE", 2**10)
    queries, documents = random_tokens(40, 6, 1), random_tokens(50, 9, 2)
    with LargestTensor() as largest:
        scores_and_gradients(maxsim, queries, documents)
    assert largest.numel <= 40 * 50 * 6  # products: 40 * 50 * 6 * 9; the best token of each is kept tile by tile
    with LargestTensor() as largest:
        maxsim(queries, documents)
    assert largest.numel <= max(40 * 50, documents.vectors.numel(), 2 * 2**10)


def test_whatever_stands_in_padding_reaches_neither_score_nor_gradient():
    queries, documents = random_tokens(4, 5, 1), random_tokens(6, 7, 2)
    documents.mask[2] = False
    expected = scores_and_gradients(maxsim, queries, documents)
    for side in (queries, documents):
        side.vectors[~side.mask] = torch.tensor([torch.nan, torch.inf, 1e9, -torch.inf], dtype=torch.float64)
    torch.testing.assert_close(scores_and_gradients(maxsim, queries, documents), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_maxsim_and_its_gradient_are_computed_in_float32_even_under_autocast(dtype):
    queries, documents = (
        replace(side, vectors=side.vectors.to(dtype)) for side in (random_tokens(5, 4, 1), random_tokens(6, 7, 2))
    )
    exact = whole(*(replace(side, vectors=side.vectors.double()) for side in (queries, documents)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, *gradients = scores_and_gradients(maxsim, queries, documents)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact[0], rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, exact[1:], strict=True):
        torch.testing.assert_close(gradient, expected.to(dtype))


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
