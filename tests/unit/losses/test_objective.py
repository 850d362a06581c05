"""The ScoreView gives the same scores in strips as at once, and the scale keeps to its limit."""

import math

import pytest
import torch

from vembed.losses.objective import MAX_LOG_SCALE, ScoreView, limit_scale, scale_of
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings


def random_embeddings(rows: int, seed: int, *, tokens: int | None = None) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 4) if tokens is None else (rows, tokens, 4)
    mask = None if tokens is None else torch.rand(rows, tokens, generator=generator) > 0.4
    return Embeddings(torch.randn(shape, generator=generator, dtype=torch.float64), mask)


@pytest.mark.parametrize(("scorer", "tokens"), [(cosine, None), (dot, None), (maxsim, 3)])
@pytest.mark.parametrize("rows", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("bias", [None, torch.tensor([-2.0], dtype=torch.float64)])
def test_strips_together_are_the_dense_scores(scorer, tokens, rows, bias):
    queries, documents = random_embeddings(7, 1, tokens=tokens), random_embeddings(5, 2, tokens=tokens)
    view = ScoreView(queries, documents, scorer, torch.tensor([3.0], dtype=torch.float64), bias)
    strips = list(view.strips(rows))
    assert torch.allclose(torch.cat([scores for scores, _ in strips]), view.dense(), rtol=1e-14, atol=0)
    assert [len(scores) for scores, _ in strips[:-1]] == [rows] * (len(strips) - 1)
    has_tokens = [
        torch.ones(len(side.vectors)) if side.mask is None else side.mask.any(1) for side in (queries, documents)
    ]
    assert torch.equal(torch.cat([real for _, real in strips]), torch.outer(*has_tokens).bool())


@pytest.mark.parametrize(("scorer", "tokens"), [(cosine, None), (dot, None), (maxsim, 3)])
def test_pairs_are_picked_from_the_matrix(scorer, tokens):
    queries, documents = random_embeddings(7, 1, tokens=tokens), random_embeddings(5, 2, tokens=tokens)
    view = ScoreView(queries, documents, scorer, torch.tensor([3.0], dtype=torch.float64))
    rows, columns = torch.arange(7).repeat(5), torch.arange(5).repeat_interleave(7)
    assert torch.allclose(view.pairs(rows, columns), view.dense()[rows, columns], rtol=1e-13, atol=1e-14)
    assert view.pairs(rows[:0], columns[:0]).shape == (0,)


def test_scores_are_scaled_and_shifted():
    view = ScoreView(
        Embeddings(torch.tensor([[1.0, 2.0]])),
        Embeddings(torch.tensor([[3.0, 4.0]])),
        dot,
        torch.tensor([10.0]),
        torch.tensor([-1.0]),
    )
    assert view.dense().tolist() == [[109.0]]


def test_gradients_flow_to_embeddings_scale_and_bias():
    queries, documents = random_embeddings(3, 1).vectors.requires_grad_(), random_embeddings(2, 2).vectors
    scale, bias = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (2.0, 0.5))

    def scores(q: torch.Tensor, s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ScoreView(Embeddings(q), Embeddings(documents), cosine, s, b).dense()

    assert torch.autograd.gradcheck(scores, (queries, scale, bias))


def test_the_scale_is_at_most_100_and_float32():
    scale = scale_of(torch.tensor([math.log(20), 5.0, 80.0], dtype=torch.bfloat16))
    assert scale.dtype == torch.float32
    assert scale.tolist() == pytest.approx([20, 100, 100], rel=1e-2)
    assert scale_of(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_temperature_at_the_limit_can_come_back(dtype):
    logit_scale = torch.nn.Parameter(torch.tensor([7.0], dtype=dtype))
    limit_scale(logit_scale)
    assert logit_scale.item() == pytest.approx(MAX_LOG_SCALE)
    scale_of(logit_scale).backward()
    assert logit_scale.grad.item() == pytest.approx(100)


def test_a_temperature_below_the_limit_is_left_alone():
    logit_scale = torch.nn.Parameter(torch.tensor([1.25]))
    limit_scale(logit_scale)
    assert logit_scale.item() == 1.25
