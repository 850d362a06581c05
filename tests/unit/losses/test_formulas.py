"""Every loss equals its formula, one pair after the other, and holds in extremes and in half precision."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.targets import make_targets, select_targets
from tests.unit.losses.batches import (
    CASES,
    CLASS_LOSSES,
    RandomBatch,
    evaluate,
    graded,
    has_meaning,
    is_cut,
    make_objective,
    random_batch,
    value_and_gradients,
    with_reference,
)
from tests.unit.losses.naive import naive_loss
from vembed.errors import ConfigError, DataError
from vembed.losses.registry import LossRegistry
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings, Sides

SCORERS = {"cosine": (cosine, None), "dot": (dot, None), "maxsim": (maxsim, 3)}
COMBINATIONS = [(name, scorer) for name in CASES for scorer in SCORERS if has_meaning(name, SCORERS[scorer][0])]
NUM_SEEDS = 10
NEEDS_SCORES = ("cosent", "contrastive", "margin_mse", "distillation")


def natural_scorer(name):
    """The scorer of a loss that has its own, else cosine; and the tokens of its embeddings."""
    return SCORERS["maxsim"] if CASES[name][0] == "colbert" else SCORERS["cosine"]


def batch_of(targets, seed=0, *, tokens=None, dim=5):
    """Random embeddings for these targets."""
    shapes = [
        (len(keys), dim) if tokens is None else (len(keys), tokens, dim)
        for keys in (targets.query_hashes, targets.document_hashes)
    ]
    generator = torch.Generator().manual_seed(seed)
    sides = [
        Embeddings(torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()) for shape in shapes
    ]
    scale, bias = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.2, -0.7))
    return RandomBatch(*sides, with_reference(graded(targets, seed), *sides, seed), scale, bias)


def test_every_registered_loss_is_tested():
    assert {loss_type for loss_type, _, _ in CASES.values()} == set(LossRegistry.list())


@pytest.mark.parametrize(("name", "scorer_name"), COMBINATIONS)
def test_the_loss_equals_a_double_loop(name, scorer_name):
    scorer, tokens = SCORERS[scorer_name]
    values = []
    for seed in range(NUM_SEEDS):
        batch = random_batch(seed, tokens=tokens)
        values.append(evaluate(name, batch, scorer).item())
        assert values[-1] == pytest.approx(naive_loss(name, batch, scorer), rel=1e-9, abs=1e-12), seed
    assert sum(value > 1e-3 for value in values) > NUM_SEEDS / 3


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_derivative(name):
    scorer, tokens = natural_scorer(name)
    batch = random_batch(5, tokens=tokens)

    def function(queries, documents, scale, bias):
        sides = Embeddings(queries, batch.queries.mask), Embeddings(documents, batch.documents.mask)
        return evaluate(name, RandomBatch(*sides, batch.targets, scale, bias), scorer)

    leaves = batch.leaves
    # Hardness weighs by the score without a gradient, by definition: its derivative is another.
    if CASES[name][1].get("hardness_strength") is not None:
        return
    if CASES[name][0] == "preference":  # preferences take the temperature as given
        leaves[2] = leaves[2].detach()
    assert torch.autograd.gradcheck(function, tuple(leaves), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_inputs_are_scored_in_float32(name, dtype):
    scorer, tokens = natural_scorer(name)
    for seed in range(4):
        half = random_batch(seed, tokens=tokens).to(dtype)
        value, gradients = value_and_gradients(name, half, scorer)
        exact = evaluate(name, half.to(torch.float64), scorer)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-5)
        assert all(gradient.isfinite().all() for gradient in gradients)


EXTREMES = {
    "one row": make_targets([[0]], 1),
    "one row that names all documents": make_targets([[0, 1, 2]], 3),
    "all rows one group": make_targets([[0], [1], [2]], 3, query_groups=[4, 4, 4], document_groups=[4, 4, 4]),
    "all documents equal": make_targets([[0], [1]], 2, document_hashes=[1, 1]),
    "the only other document is the query itself": make_targets([[0]], 2, query_hashes=[5], document_hashes=[4, 5]),
    "a query without negatives": make_targets([[0], [1]], 2, query_groups=[1, 2], document_groups=[2, 2]),
}
KINDS = ("random", "zero", "equal", "width 1")


def spoil(batch: RandomBatch, kind: str) -> RandomBatch:
    def change(side: Embeddings) -> Embeddings:
        vectors = side.vectors.detach()
        changed = {
            "random": vectors,
            "zero": torch.zeros_like(vectors),
            "equal": torch.ones_like(vectors),
            "width 1": vectors[..., :1],
        }[kind]
        return Embeddings(changed.clone().requires_grad_(), side.mask)

    return replace(batch, queries=change(batch.queries), documents=change(batch.documents))


@pytest.mark.parametrize("name", CASES)
def test_extremes_give_finite_numbers_without_a_nan_on_the_way(name):
    scorer, tokens = natural_scorer(name)
    for targets in EXTREMES.values():
        for kind in KINDS:
            if is_cut(name) and kind == "width 1":
                continue
            batch = spoil(batch_of(targets, tokens=tokens), kind)
            value, gradients = value_and_gradients(name, batch, scorer, refuse_nan=True)
            assert value.isfinite()
            assert all(gradient.isfinite().all() for gradient in gradients)
            wanted = naive_loss(name, batch, scorer) if kind != "zero" or not is_cut(name) else value.item()
            assert value.item() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    "name", [name for name in CASES if has_meaning(name, maxsim) and not name.startswith(NEEDS_SCORES)]
)
def test_rows_whose_tokens_are_all_padding_cost_nothing(name):
    batch = random_batch(3, tokens=3)
    masked = [Embeddings(side.vectors, torch.zeros_like(side.mask)) for side in (batch.queries, batch.documents)]
    value, gradients = value_and_gradients(name, replace(batch, queries=masked[0], documents=masked[1]), maxsim)
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", CASES)
def test_another_order_of_rows_is_another_order_of_gradients_and_nothing_else(name):
    scorer, tokens = natural_scorer(name)
    for seed in range(5):
        batch = random_batch(seed, tokens=tokens)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(batch.queries.vectors), generator=generator).tolist()
        columns = torch.randperm(len(batch.documents.vectors), generator=generator).tolist()
        moved = RandomBatch(
            take(batch.queries, rows),
            take(batch.documents, columns),
            select_targets(batch.targets, rows, columns),
            batch.logit_scale,
            batch.logit_bias,
        )
        value, gradients = value_and_gradients(name, batch, scorer)
        moved_value, moved_gradients = value_and_gradients(name, moved, scorer)
        assert moved_value.item() == pytest.approx(value.item(), rel=1e-10)
        gradients[:2] = gradients[0][rows], gradients[1][columns]
        for gradient, other in zip(gradients, moved_gradients, strict=True):
            assert torch.allclose(other, gradient, rtol=1e-9, atol=1e-12)


def take(side: Embeddings, rows: list[int]) -> Embeddings:
    return Embeddings(side.vectors[rows], None if side.mask is None else side.mask[rows])


SWAPPED = {
    name: name
    for name in ("infonce", "infonce own sides", "infonce hard", "supcon", "sigmoid", "cosent in_batch", "mrl")
} | {
    "infonce query_to_document": "infonce document_to_query",
    "supcon query_to_document": "supcon document_to_query",
}


@pytest.mark.parametrize("name", SWAPPED)
def test_swapping_the_sides_swaps_the_directions(name):
    """A loss of both directions, or of none, stays the same."""
    batch = batch_of(make_targets([[2], [0], [4], [1], [3]], 5))
    swapped = make_targets([[1], [3], [0], [4], [2]], 5)
    other = RandomBatch(batch.documents, batch.queries, graded(swapped, 0), batch.logit_scale, batch.logit_bias)
    value, gradients = value_and_gradients(name, batch, cosine)
    other_value, other_gradients = value_and_gradients(SWAPPED[name], other, cosine)
    assert other_value.item() == pytest.approx(value.item(), rel=1e-12)
    for number, gradient in enumerate(gradients):
        assert torch.allclose(other_gradients[[1, 0, 2, 3][number]], gradient, rtol=1e-9, atol=1e-12)


def once_and_twice(name, targets, repeated, seed=0):
    """A batch, and the same with one of its documents once more: of the same content, named by no row."""
    _, tokens = natural_scorer(name)
    batch = batch_of(targets, seed, tokens=tokens)
    order = [*range(len(targets.document_hashes)), repeated]
    groups, hashes = targets.document_groups[order], targets.document_hashes[order]
    reference = batch.targets.reference
    sides = Sides(reference.queries, take(reference.documents, order))
    doubled = replace(batch.targets, document_groups=groups, document_hashes=hashes, reference=sides)
    return batch, replace(batch, documents=take(batch.documents, order), targets=doubled)


# By definition it counts twice in a denominator (supcon), in a sum over pairs (sigmoid, cosent in_batch), and as a
# negative of other documents (document_to_document).
TWICE = ("supcon", "sigmoid", "cosent in_batch")
ABSORBED = [name for name in CASES if not name.startswith(TWICE) and not CASES[name][1].get("document_to_document")]


@pytest.mark.parametrize("name", ABSORBED)
def test_a_positive_that_stands_twice_changes_nothing_for_its_query(name):
    targets = make_targets([[0]], 3, negatives=[[1, 2]], query_groups=[2], document_groups=[2, -1, -1])
    once, twice = once_and_twice(name, targets, repeated=0)
    scorer, _ = natural_scorer(name)
    assert evaluate(name, twice, scorer).item() == pytest.approx(evaluate(name, once, scorer).item(), rel=1e-12)


# Other documents may push it (document_to_document), the centre of a class pulls it, and MaxSim is no inner product.
PULLED = [
    name
    for name, (loss_type, options, _) in CASES.items()
    if loss_type not in ("colbert", *CLASS_LOSSES) and not options.get("document_to_document")
]


@pytest.mark.parametrize("name", PULLED)
def test_a_document_with_the_content_of_a_positive_is_pushed_away_by_no_loss(name):
    targets = make_targets([[0]], 3, negatives=[[1, 2]])
    for seed in range(5):
        _, twice = once_and_twice(name, targets, repeated=0, seed=seed)
        of_documents = value_and_gradients(name, twice, dot if has_meaning(name, dot) else cosine)[1][1]
        towards = of_documents @ twice.queries.vectors.detach()[0]
        assert towards[3] <= 1e-12


def test_with_one_positive_each_supcon_is_infonce():
    batch = batch_of(make_targets([[0], [1], [2]], 5, negatives=[[3], [], [4]]))
    assert evaluate("supcon", batch, cosine).item() == pytest.approx(
        evaluate("infonce", batch, cosine).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", ["cosent", "contrastive", "margin_mse"])
def test_a_batch_without_scores_is_refused(name):
    batch = batch_of(make_targets([[0], [1]], 2))
    with pytest.raises(DataError, match=rf"loss_type {name} compares with scores; rows need a `score`"):
        evaluate(name, replace(batch, targets=make_targets([[0], [1]], 2)), cosine)


@pytest.mark.parametrize(
    ("name", "scorer", "words"),
    [
        ("colbert", cosine, "needs one vector per token; choose infonce"),
        ("colbert", dot, "needs one vector per token"),
        ("contrastive", dot, "is defined on cosine distance"),
        ("contrastive", maxsim, "is defined on cosine distance"),
        ("arcface", maxsim, "compares one vector per row with one per class, which late interaction does not have"),
        ("proxy_anchor", maxsim, "compares one vector per row with one per class"),
    ],
)
def test_a_combination_without_meaning_says_why(name, scorer, words):
    with pytest.raises(ConfigError, match=words):
        make_objective(name, scorer)
    refused = Counter(has_meaning(name, one) for one in (cosine, dot, maxsim))[False]
    assert refused == (1 if name in CLASS_LOSSES else 2)
