"""Losses over the weights of classes: worked-out values, what counts as an example, and the weights themselves."""

import math
from dataclasses import replace

import pytest
import torch

from tests.targets import make_targets, ragged
from tests.unit.losses.batches import CASES, CLASS_LOSSES, RandomBatch, make_objective, random_batch, value_of
from vembed.errors import ConfigError, DataError
from vembed.losses import strips
from vembed.losses.class_weights import ClassWeights
from vembed.losses.factory import LossFactory
from vembed.losses.functions.arcface import with_margin
from vembed.losses.registry import Loss, LossRegistry
from vembed.losses.settings import ArcFaceSettings, ClassSettings, InfoNCESettings, LossSettings, ProxyAnchorSettings
from vembed.scoring import cosine, dot
from vembed.types import Embeddings

NAMES = [name for name, (loss_type, _, _) in CASES.items() if loss_type in CLASS_LOSSES]
X, Y, DIAGONAL = [2.0, 0.0], [0.0, 0.5], [3.0, 3.0]  # lengths play no part


def create(loss_type, options, classes=(7, 3), dim=2, **model):
    return LossFactory.create(LossSettings(loss_type=loss_type), options, dim=dim, classes=classes, **model)


def evaluate(objective, weights, queries, documents, targets):
    """The loss with these weights, in order of ascending groups."""
    objective.classes.double()
    objective.classes.weight.data.copy_(torch.tensor(weights))
    sides = [Embeddings(torch.tensor(side, dtype=torch.float64).reshape(-1, 2)) for side in (queries, documents)]
    return objective(*sides, targets, logit_scale=torch.zeros(1, dtype=torch.float64))


def targets_of(query_groups, document_hashes=(20,), query_hashes=(10,)):
    """Rows that all name the first document."""
    return make_targets(
        [[0] for _ in query_groups],
        len(document_hashes),
        query_groups=query_groups,
        document_hashes=list(document_hashes),
        query_hashes=list(query_hashes),
    )


def test_arcface_worked_out():
    """The query lies on its class's centre, the document at 45 degrees between both; the margin is 30 degrees."""
    objective = create("arcface", ArcFaceSettings(arcface_margin=math.pi / 6, class_scale=2))
    value = evaluate(objective, [X, Y], [X], [DIAGONAL], targets_of([3]))
    of_query = math.log(1 + math.exp(2 * 0 - 2 * math.cos(math.pi / 6)))
    of_document = math.log(1 + math.exp(2 * math.cos(math.pi / 4) - 2 * math.cos(math.pi / 4 + math.pi / 6)))
    assert value.item() == pytest.approx((of_query + of_document) / 2, rel=1e-12)


def test_proxy_anchor_worked_out():
    """One class of two is in the batch: its proxy pulls both items, the other one pushes both."""
    objective = create("proxy_anchor", ProxyAnchorSettings(proxy_margin=0.1, class_scale=2))
    value = evaluate(objective, [X, Y], [X], [DIAGONAL], targets_of([3]))
    half = math.sqrt(0.5)
    pull = math.log(1 + math.exp(-2 * (1 - 0.1)) + math.exp(-2 * (half - 0.1)))
    push = math.log(1 + math.exp(2 * (0 + 0.1)) + math.exp(2 * (half + 0.1)))
    assert value.item() == pytest.approx(pull / 1 + push / 2, rel=1e-12)


def test_without_margin_arcface_is_cross_entropy():
    objective = create("arcface", ArcFaceSettings(arcface_margin=0, class_scale=5), classes=range(6), dim=4).classes
    arcface = create("arcface", ArcFaceSettings(arcface_margin=0, class_scale=5), classes=range(6), dim=4)
    generator = torch.Generator().manual_seed(1)
    queries, documents = (torch.randn(5, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([2, 0, 5, 2, 1])
    targets = make_targets([[row] for row in range(5)], 5, query_groups=labels.tolist())
    value = arcface(Embeddings(queries), Embeddings(documents), targets, logit_scale=torch.zeros(1))
    vectors = torch.nn.functional.normalize(torch.cat([queries, documents]))
    logits = 5 * vectors @ torch.nn.functional.normalize(objective.weight).T
    expected = torch.nn.functional.cross_entropy(logits, torch.cat([labels, labels]))
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_beyond_pi_the_margin_goes_on_falling():
    margin = 0.5
    angles = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    shifted = with_margin(angles.cos(), margin)
    assert (shifted.diff() < 0).all()
    near = angles + margin <= math.pi
    assert torch.allclose(shifted[near], (angles + margin)[near].cos(), atol=1e-9)
    beyond = angles[~near]
    assert len(beyond) > 20
    assert torch.allclose(shifted[~near], beyond.cos() - margin * math.sin(margin))


def test_an_item_at_an_angle_of_zero_has_a_finite_gradient():
    cosines = torch.tensor([1.0, -1.0, 1.0 + 1e-7], requires_grad=True)
    with_margin(cosines, 0.5).sum().backward()
    assert cosines.grad.isfinite().all()


def test_sub_centres_count_by_the_nearest_and_share_a_tie():
    options = ArcFaceSettings(sub_centres=2, class_scale=3)
    objective = create("arcface", options)
    targets = targets_of([3])
    spread = evaluate(objective, [X, [-1.0, 0.0], Y, Y], [X], [DIAGONAL], targets)
    spread.backward()
    gradients = objective.classes.weight.grad
    assert gradients[1].norm() == 0  # the centre on the other side is nobody's nearest
    assert gradients[0].norm() > 0
    assert torch.allclose(gradients[2], gradients[3])
    one = evaluate(create("arcface", ArcFaceSettings(class_scale=3)), [X, Y], [X], [DIAGONAL], targets)
    assert spread.item() == pytest.approx(one.item(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_strips", [False, True])
def test_the_gradient_of_the_weights_is_the_derivative(name, in_strips, monkeypatch):
    if in_strips:
        monkeypatch.setattr(strips, "DENSE_SCORES", -1)
        monkeypatch.setattr(strips, "strip_rows", lambda _view: 3)
    batch, objective = random_batch(8), make_objective(name, cosine)

    def function(weight):
        return torch.func.functional_call(Whole(objective), {"objective.weight": weight}, (batch,))

    assert torch.autograd.gradcheck(function, (objective.classes.weight,), fast_mode=True)


class Whole(torch.nn.Module):
    """An objective whose weights can be exchanged for a call."""

    def __init__(self, objective):
        super().__init__()
        self._value = lambda batch: value_of(objective, batch)
        self.objective = objective.classes

    def forward(self, batch):
        return self._value(batch)


@pytest.mark.parametrize("name", NAMES)
def test_an_item_counts_once_on_whichever_sides_it_stands(name):
    """A picture that is a query and a document too weighs as much as one that is a document alone."""
    batch = random_batch(3)
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = make_targets([[0], [1]], 2, query_groups=[1, 2], query_hashes=[30, 31], document_hashes=[30, 32])
    other = make_targets([[0], [1]], 2, query_groups=[1, 2], query_hashes=[33, 31], document_hashes=[30, 32])
    once = make_targets([[0, 1, 2]], 3, query_groups=[1], query_hashes=[40], document_hashes=[30, 31, 32])
    objective = make_objective(name, cosine)

    def value(queries, documents, targets):
        sides = Embeddings(vectors[queries]), Embeddings(vectors[documents])
        return value_of(objective, RandomBatch(*sides, targets, batch.logit_scale, batch.logit_bias)).item()

    assert value([0, 1], [0, 2], both) != pytest.approx(value([0, 1], [0, 2], other), rel=1e-6)
    same_class = replace(both, query_groups=torch.tensor([1, 1]))
    alone = replace(once, query_hashes=torch.tensor([30]))
    assert value([0, 1], [0, 2], same_class) == pytest.approx(value([0], [0, 1, 2], alone), rel=1e-12)


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_an_item_of_two_classes_stands_against_neither(loss_type):
    """It lies between the centres of its two classes; a third one, on the other side, is all that there is to leave."""
    objective = create(loss_type, LossRegistry.get(loss_type).settings(class_scale=4), classes=(1, 2, 3))
    third = [-1.0, -1.0]
    targets = make_targets([[0], [0]], 1, query_groups=[1, 2], query_hashes=[8, 8], document_hashes=[9])
    (objective.classes.double()).zero_grad()
    evaluate(objective, [X, Y, third], [DIAGONAL, DIAGONAL], [DIAGONAL], targets).backward()
    gradient = objective.classes.weight.grad
    assert (gradient[0] @ torch.tensor(DIAGONAL, dtype=torch.float64)) < 0  # descent brings both nearer
    assert (gradient[1] @ torch.tensor(DIAGONAL, dtype=torch.float64)) < 0


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_explicit_negatives_and_rows_without_a_group_take_no_part(loss_type):
    objective = create(loss_type, LossRegistry.get(loss_type).settings(class_scale=4))
    queries = torch.tensor([X, Y], requires_grad=True)
    documents = torch.tensor([DIAGONAL, Y, X], requires_grad=True)
    targets = make_targets([[0], [2]], 3, negatives=[[1], []], query_groups=[3, -1])
    objective(Embeddings(queries), Embeddings(documents), targets, logit_scale=torch.zeros(1)).backward()
    assert [bool(row.any()) for row in documents.grad] == [True, False, False]
    assert [bool(row.any()) for row in queries.grad] == [True, False]


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_without_any_class_in_the_batch_the_loss_and_its_gradient_are_0(loss_type):
    objective = create(loss_type, None)
    queries, documents = (torch.tensor([X], requires_grad=True) for _ in range(2))
    loss = objective(Embeddings(queries), Embeddings(documents), make_targets([[0]], 1), logit_scale=torch.zeros(1))
    loss.backward()
    assert loss.item() == 0
    assert not objective.classes.weight.grad.any()


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_lengths_play_no_part_for_inner_products_either(loss_type):
    values = [
        evaluate(create(loss_type, None, scorer=scorer), [X, Y], [X], [DIAGONAL], targets_of([3])).item()
        for scorer in (cosine, dot)
    ]
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_a_group_that_is_no_class_is_refused(loss_type):
    with pytest.raises(DataError, match=r"has a group \(key 5\) that is none of the 2 classes"):
        evaluate(create(loss_type, None), [X, Y], [X], [DIAGONAL], targets_of([5]))


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_class_weights_need_two_classes_and_a_width(loss_type):
    with pytest.raises(ConfigError, match=f"{loss_type} tells classes apart and needs at least 2, .* hold 1; `group`"):
        create(loss_type, None, classes=[4, 4])
    with pytest.raises(ConfigError, match="name the model's width"):
        create(loss_type, None, dim=None)


def test_weights_are_drawn_from_the_seed_with_length_1():
    keys = [5, 2**62, 5, 1]
    one, same, other = (ClassWeights(keys, 8, per_class=2, learning_rate=0.1, seed=seed) for seed in (1, 1, 2))
    assert one.keys.tolist() == [1, 5, 2**62]
    assert (one.weight.shape, one.weight.dtype) == ((6, 8), torch.float32)
    assert torch.allclose(one.weight.norm(dim=1), torch.ones(6))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("loss_type", CLASS_LOSSES)
def test_many_classes_are_never_scored_at_once(loss_type, monkeypatch):
    monkeypatch.setattr(strips, "DENSE_SCORES", -1)
    monkeypatch.setattr(strips, "strip_rows", lambda _view: 2)
    sizes = []
    product = strips.inner_products
    monkeypatch.setattr(strips, "inner_products", lambda *sides: sizes.append(len(sides[0])) or product(*sides))
    value_of(make_objective(loss_type, cosine), random_batch(2)).backward()
    assert set(sizes) <= {1, 2}
    assert len(sizes) > 2


def test_a_plugin_can_learn_classes(monkeypatch):
    monkeypatch.setattr(LossRegistry, "_components", dict(LossRegistry._components))

    def to_centre(queries, documents, targets, centres, settings):
        numbers = torch.searchsorted(centres.keys, targets.query_groups)
        return (queries.vectors - centres.vectors[numbers]).square().sum()

    LossRegistry.register("centre", Loss(ClassSettings, to_centre, reads="embeddings", learns_classes=True))
    objective = create("centre", ClassSettings(class_learning_rate=0.5))
    assert objective.classes.learning_rate == 0.5
    assert evaluate(objective, [X, Y], [[2.0, 3.0]], [X], targets_of([3])).item() == 9
    with pytest.raises(
        ConfigError, match="InfoNCESettings: a loss that learns classes reads embeddings, and its section"
    ):
        Loss(InfoNCESettings, to_centre, reads="embeddings", learns_classes=True)


def test_ragged_positives_make_a_document_an_example_of_every_class_that_names_it():
    objective = create("arcface", ArcFaceSettings(class_scale=3), classes=(1, 2, 3))
    targets = replace(
        make_targets([[], []], 1, query_groups=[1, 2]), positives=ragged([[0], [0]]), document_groups=torch.tensor([-1])
    )
    value = evaluate(objective, [X, Y, DIAGONAL], [X, Y], [DIAGONAL], targets)
    swapped = evaluate(
        objective, [X, Y, DIAGONAL], [Y, X], [DIAGONAL], replace(targets, query_groups=torch.tensor([2, 1]))
    )
    assert value.item() == pytest.approx(swapped.item(), rel=1e-12)
