"""InfoNCE against a naive loop, worked values, sentence-transformers, its symmetries and its extremes."""

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from tests.targets import make_targets, random_targets, select_targets
from vembed.losses.factory import LossFactory
from vembed.losses.masks import dense_masks
from vembed.losses.settings import InfoNCESettings, LossSettings
from vembed.scoring import cosine, dot
from vembed.types import Embeddings, Targets

DIRECTIONS = ["both", "query_to_document", "document_to_query"]
COLD = torch.tensor([3.0], dtype=torch.float64)  # log of the scale


def random_vectors(rows: int, seed: int, dim: int = 5) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(queries, documents, targets, direction="both", *, logit_scale=COLD, scorer=cosine) -> Tensor:
    objective = LossFactory.create(LossSettings(), InfoNCESettings(loss_direction=direction), scorer=scorer)
    return objective(Embeddings(queries), Embeddings(documents), targets, logit_scale=logit_scale)


def naive_contrast(scores, positive, negative) -> float:
    """The module's formula, one anchor and one positive at a time, in plain Python floats."""
    anchors = []
    for row, chosen, against in zip(scores, positive, negative, strict=True):
        denominator = sum(math.exp(score) for score, counts in zip(row, against, strict=True) if counts)
        terms = [
            -math.log(math.exp(score) / (math.exp(score) + denominator))
            for score, counts in zip(row, chosen, strict=True)
            if counts
        ]
        if terms:
            anchors.append(sum(terms) / len(terms))
    return sum(anchors) / len(anchors)


def naive_loss(queries: Tensor, documents: Tensor, targets: Targets, direction: str) -> float:
    masks = dense_masks(targets)  # itself checked against a double loop in test_masks
    scale = math.exp(float(COLD))
    unit = [[row / row.norm() for row in side] for side in (queries, documents)]
    scores = torch.tensor([[scale * float(q @ d) for d in unit[1]] for q in unit[0]], dtype=torch.float64)
    sides = {"query_to_document": False, "document_to_query": True}
    values = {
        name: naive_contrast(
            *[(part.T if flip else part).tolist() for part in (scores, masks.positive, masks.negative)]
        )
        for name, flip in sides.items()
    }
    return sum(values.values()) / 2 if direction == "both" else values[direction]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_loss_equals_a_naive_loop_over_random_targets(direction):
    for seed in range(60):
        targets = random_targets(seed, num_keys=6)
        queries = random_vectors(len(targets.query_hashes), seed)
        documents = random_vectors(len(targets.document_hashes), seed + 1000)
        expected = naive_loss(queries, documents, targets, direction)
        assert loss_of(queries, documents, targets, direction).item() == pytest.approx(expected, abs=1e-12), seed


def test_two_equal_scores_cost_the_log_of_two():
    vectors = torch.ones(2, 3)
    assert loss_of(vectors, vectors, make_targets([[0], [1]], 2)).item() == pytest.approx(math.log(2))


def test_a_worked_example_in_each_direction():
    """Scores [[1, 0, 0], [0, 2, 1]]; query 0 wants document 0, query 1 wants 1, document 2 is its hard negative."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    targets = make_targets([[0], [1]], 3, negatives=[[], [2]])
    no_scale = {"logit_scale": torch.zeros(1), "scorer": dot}
    e = math.e
    to_document = (math.log(1 + 2 / e) + math.log(1 + (1 + e) / e**2)) / 2
    to_query = (math.log(1 + 1 / e) + math.log(1 + 1 / e**2)) / 2
    assert loss_of(queries, documents, targets, "query_to_document", **no_scale).item() == pytest.approx(to_document)
    assert loss_of(queries, documents, targets, "document_to_query", **no_scale).item() == pytest.approx(to_query)
    assert loss_of(queries, documents, targets, **no_scale).item() == pytest.approx((to_document + to_query) / 2)


def test_a_second_positive_is_averaged_and_stands_in_no_denominator():
    """Scores [1, 0, 0], positives 0 and 1, negative 2: (log(1 + 1/e) + log 2) / 2."""
    queries, documents = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    targets = make_targets([[0, 1]], 3, negatives=[[2]])
    value = loss_of(queries, documents, targets, "query_to_document", logit_scale=torch.zeros(1), scorer=dot)
    assert value.item() == pytest.approx((math.log(1 + 1 / math.e) + math.log(2)) / 2)


@pytest.mark.parametrize("num_negatives", [0, 2])
@pytest.mark.parametrize("both", [False, True])
def test_value_and_gradient_equal_sentence_transformers(num_negatives, both):
    rows, scale = 6, 20.0
    directions = ("query_to_doc", "doc_to_query") if both else ("query_to_doc",)
    theirs = MultipleNegativesRankingLoss(
        model=None, scale=scale, directions=directions, partition_mode="per_direction" if both else "joint"
    )
    columns = [random_vectors(rows, seed).requires_grad_() for seed in range(2 + num_negatives)]
    expected = theirs.compute_loss_from_embeddings(columns, None)
    negatives = [[rows * (1 + number) + row for number in range(num_negatives)] for row in range(rows)]
    targets = make_targets([[row] for row in range(rows)], rows * (1 + num_negatives), negatives=negatives)
    value = loss_of(
        columns[0],
        torch.cat(columns[1:]),
        targets,
        "both" if both else "query_to_document",
        logit_scale=torch.tensor([scale], dtype=torch.float64).log(),
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, peer in zip(torch.autograd.grad(value, columns), torch.autograd.grad(expected, columns), strict=True):
        assert torch.allclose(ours, peer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_gradient_is_the_derivative(direction):
    targets = random_targets(3, num_keys=6)
    queries = random_vectors(len(targets.query_hashes), 1).requires_grad_()
    documents = random_vectors(len(targets.document_hashes), 2).requires_grad_()
    scale = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)

    def function(q: Tensor, d: Tensor, s: Tensor) -> Tensor:
        return loss_of(q, d, targets, direction, logit_scale=s)

    assert torch.autograd.gradcheck(function, (queries, documents, scale))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_order_of_rows_does_not_matter(direction):
    for seed in range(10):
        targets = random_targets(seed, num_keys=6)
        queries = random_vectors(len(targets.query_hashes), seed)
        documents = random_vectors(len(targets.document_hashes), seed + 1)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(queries), generator=generator).tolist()
        columns = torch.randperm(len(documents), generator=generator).tolist()
        moved = loss_of(queries[rows], documents[columns], select_targets(targets, rows, columns), direction)
        assert moved.item() == pytest.approx(loss_of(queries, documents, targets, direction).item(), rel=1e-12)


def test_both_directions_are_symmetric_under_swapping_the_sides():
    queries, documents = random_vectors(5, 1), random_vectors(5, 2)
    targets = make_targets([[2], [0], [4], [1], [3]], 5)
    swapped = make_targets([[1], [3], [0], [4], [2]], 5)
    value = loss_of(queries, documents, targets).item()
    assert loss_of(documents, queries, swapped).item() == pytest.approx(value, rel=1e-12)
    assert loss_of(documents, queries, swapped, "query_to_document").item() == pytest.approx(
        loss_of(queries, documents, targets, "document_to_query").item(), rel=1e-12
    )


def test_a_positive_that_stands_twice_changes_nothing_for_its_query():
    queries, documents = random_vectors(1, 1), random_vectors(3, 2)
    once = make_targets([[0]], 3, negatives=[[1, 2]], document_hashes=[1, 2, 3])
    twice = make_targets([[0]], 4, negatives=[[1, 2]], document_hashes=[1, 2, 3, 1])
    repeated = torch.cat([documents, documents[:1]])
    for direction in DIRECTIONS:
        expected = loss_of(queries, documents, once, direction).item()
        assert loss_of(queries, repeated, twice, direction).item() == pytest.approx(expected, rel=1e-12)


def test_a_row_that_stands_twice_is_not_its_own_negative():
    queries, documents = random_vectors(2, 1), random_vectors(2, 2)
    targets = make_targets([[0], [1]], 2, query_hashes=[1, 2], document_hashes=[3, 4])
    doubled = make_targets([[0], [1], [2], [3]], 4, query_hashes=[1, 2, 1, 2], document_hashes=[3, 4, 3, 4])
    scores = cosine(Embeddings(queries), Embeddings(documents)) * COLD.exp()
    for direction, matrix in (("query_to_document", scores), ("document_to_query", scores.T)):
        own, other = matrix.diagonal(), matrix.flip(1).diagonal()
        once = (1 + (other - own).exp()).log().mean().item()
        twice = (1 + 2 * (other - own).exp()).log().mean().item()  # only the other row's copies are negatives
        assert loss_of(queries, documents, targets, direction).item() == pytest.approx(once, rel=1e-12)
        value = loss_of(queries.repeat(2, 1), documents.repeat(2, 1), doubled, direction)
        assert value.item() == pytest.approx(twice, rel=1e-12)


def test_a_constant_bias_does_not_move_the_loss():
    targets, objective = make_targets([[0], [1]], 2), LossFactory.create(LossSettings())
    sides = Embeddings(random_vectors(2, 1)), Embeddings(random_vectors(2, 2))
    bias = torch.tensor([-10.0], dtype=torch.float64)
    moved = objective(*sides, targets, logit_scale=COLD, logit_bias=bias)
    assert moved.item() == pytest.approx(objective(*sides, targets, logit_scale=COLD).item(), rel=1e-9)


EXTREMES = {
    "one row": make_targets([[0]], 1),
    "one row that names all documents": make_targets([[0, 1, 2]], 3),
    "all rows one group": make_targets([[0], [1], [2]], 3, query_groups=[4, 4, 4], document_groups=[4, 4, 4]),
    "all documents equal": make_targets([[0], [1]], 2, document_hashes=[1, 1]),
    "the only other document is the query itself": make_targets([[0]], 2, query_hashes=[5], document_hashes=[4, 5]),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", EXTREMES)
def test_without_negatives_loss_and_gradients_are_zero(name, direction):
    targets = EXTREMES[name]
    queries = random_vectors(len(targets.query_hashes), 1).requires_grad_()
    documents = random_vectors(len(targets.document_hashes), 2).requires_grad_()
    scale = COLD.clone().requires_grad_()
    with torch.autograd.set_detect_anomaly(True, check_nan=True):  # no NaN on the way either
        value = loss_of(queries, documents, targets, direction, logit_scale=scale)
        gradients = torch.autograd.grad(value, [queries, documents, scale])
    assert value.item() == 0
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_row_without_negatives_among_rows_with_costs_nothing_but_counts():
    """Query 1's group holds every document; query 0 has one negative of equal score."""
    vectors = torch.ones(2, 3)
    targets = make_targets([[0], [1]], 2, query_groups=[1, 2], document_groups=[2, 2])
    value = loss_of(vectors, vectors, targets, "query_to_document")
    assert value.item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_inputs_are_scored_in_float32(dtype, direction):
    targets = random_targets(1, num_keys=6)
    queries = random_vectors(len(targets.query_hashes), 1).to(dtype).requires_grad_()
    documents = random_vectors(len(targets.document_hashes), 2).to(dtype).requires_grad_()
    scale = torch.tensor([math.log(100)])
    value = loss_of(queries, documents, targets, direction, logit_scale=scale)
    exact = loss_of(queries.double(), documents.double(), targets, direction, logit_scale=scale.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, [queries, documents]))


def test_vectors_of_zeros_have_a_finite_loss_and_no_gradient():
    queries = torch.zeros(3, 4, requires_grad=True)
    documents = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss_of(queries, documents, make_targets([[0], [1], [2]], 3))
    assert value.item() == pytest.approx(math.log(3))
    value.backward()
    assert torch.equal(queries.grad, torch.zeros_like(queries))
    assert documents.grad.isfinite().all()


def test_huge_scores_stay_finite():
    vectors = torch.eye(3, requires_grad=True)
    value = loss_of(vectors * 1e4, -vectors * 1e4, make_targets([[0], [1], [2]], 3), scorer=dot)
    assert value.isfinite()
    assert torch.autograd.grad(value, vectors)[0].isfinite().all()
