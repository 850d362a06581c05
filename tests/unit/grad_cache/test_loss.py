"""The stand-alone contrastive loss: a naive loop, InfoNCE of the runs, worked values, what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from tests.gradients import assert_gradients_equal
from tests.targets import make_targets
from vembed.errors import UsageError
from vembed.grad_cache.loss import DistributedContrastiveLoss, SimpleContrastiveLoss
from vembed.losses.factory import LossFactory
from vembed.losses.settings import InfoNCESettings, LossSettings
from vembed.scoring import dot
from vembed.types import Embeddings

KINDS = [SimpleContrastiveLoss, DistributedContrastiveLoss]


def vectors(rows: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


def naive(x: Tensor, y: Tensor, columns: list[int], scale: float) -> float:
    terms = []
    for query, column in zip(x.tolist(), columns, strict=True):
        scores = [scale * sum(a * b for a, b in zip(query, document, strict=True)) for document in y.tolist()]
        terms.append(math.log(sum(map(math.exp, scores))) - scores[column])
    return sum(terms) / len(terms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_hard_negatives", "target"), [(0, None), (2, None), (0, [3, 3, 0, 1]), (2, [11, 0, 5, 5])])
def test_value_of_a_naive_loop(kind, n_hard_negatives, target):
    x, y = vectors(4, 1), vectors(4 * (1 + n_hard_negatives), 2)
    columns = target or [row * (1 + n_hard_negatives) for row in range(4)]
    loss = kind(n_hard_negatives, scale=2.0)
    given = None if target is None else torch.tensor(target)
    assert loss(x, y, given).item() == pytest.approx(naive(x, y, columns, 2.0))
    assert loss(x, y, given, reduction="sum").item() == pytest.approx(4 * naive(x, y, columns, 2.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_hard_negatives", [0, 2])
def test_value_and_gradient_of_infonce(kind, n_hard_negatives):
    """The loss of a run, for the same embeddings, from queries to documents."""
    per_query = 1 + n_hard_negatives
    x, y = vectors(4, 1), vectors(4 * per_query, 2)
    log_scale = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    targets = make_targets(
        [[row * per_query] for row in range(4)],
        len(y),
        negatives=[[row * per_query + 1 + other for other in range(n_hard_negatives)] for row in range(4)],
    )
    settings = InfoNCESettings(loss_direction="query_to_document")
    objective = LossFactory.create(LossSettings(), settings, scorer=dot)
    expected_loss = objective(Embeddings(x), Embeddings(y), targets, logit_scale=log_scale)
    expected = dict(zip("xys", torch.autograd.grad(expected_loss, [x, y, log_scale]), strict=True))
    loss = kind(n_hard_negatives, scale=log_scale.exp())(x, y)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    assert_gradients_equal(dict(zip("xys", torch.autograd.grad(loss, [x, y, log_scale]), strict=True)), expected)


def test_one_query_and_its_document_alone_lose_nothing():
    assert SimpleContrastiveLoss()(torch.ones(1, 3), torch.ones(1, 3)).item() == 0


def test_half_precision_is_scored_in_float32():
    x, y = vectors(4, 1).detach(), vectors(4, 2).detach()
    half = SimpleContrastiveLoss()(x.bfloat16(), y.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = SimpleContrastiveLoss()(x.float(), y.float())
    assert half.dtype == under_autocast.dtype == torch.float32
    assert half.item() == pytest.approx(SimpleContrastiveLoss()(x, y).item(), rel=2e-2)
    assert under_autocast.item() == pytest.approx(SimpleContrastiveLoss()(x, y).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_told(kind):
    x, y = torch.ones(2, 3), torch.ones(6, 3)
    with pytest.raises(UsageError, match="n_hard_negatives: -1"):
        kind(-1)
    with pytest.raises(UsageError, match="2 queries with n_hard_negatives 1 have 4 documents, not 6"):
        kind(1)(x, y)
    with pytest.raises(UsageError, match="not a dict; GradCache takes a get_rep_fn"):
        kind()(x, {"last_hidden_state": y})
    with pytest.raises(UsageError, match=r"tensors \[rows, dim\], not of shape \(1, 2, 3\)"):
        kind()(x[None], y)
    for target in ([0, 6], [-1, 0], [0]):
        with pytest.raises(UsageError, match="target must be 2 columns from 0 to 5"):
            kind()(x, y, torch.tensor(target))
