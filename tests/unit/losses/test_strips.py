"""In strips, every loss has the value and the gradients that it has on the full matrix."""

import pytest
import torch

from tests.unit.losses.batches import CASES, evaluate, has_meaning, random_batch, value_and_gradients
from vembed.grad_cache.cachex.tree_utils import num_rows
from vembed.losses import contrasts, strips
from vembed.losses.objective import ScoreView
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings

SCORERS = {"cosine": (cosine, None), "dot": (dot, None), "maxsim": (maxsim, 3)}
NUM_SEEDS = 6


@pytest.fixture
def in_strips(monkeypatch):
    """Makes strips of this many queries, whatever the size."""

    def set_rows(rows: int) -> None:
        monkeypatch.setattr(strips, "DENSE_SCORES", -1)
        monkeypatch.setattr(strips, "strip_rows", lambda _view: rows)
        monkeypatch.setattr(contrasts, "strip_rows", lambda _view: rows)

    return set_rows


def assert_close(actual, expected, tolerance):
    """Values by themselves, gradients by their norm."""
    assert torch.allclose(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    for gradient, other in zip(actual[1], expected[1], strict=True):
        assert (gradient - other).norm() <= tolerance * max(1.0, float(other.norm()))


# Inner products differ from cosines in the lengths of vectors alone, so that they are for the whole suite.
COMBINATIONS = [
    pytest.param(name, scorer, marks=pytest.mark.slow if scorer == "dot" and has_meaning(name, cosine) else ())
    for name in CASES
    for scorer in SCORERS
    if has_meaning(name, SCORERS[scorer][0])
]


@pytest.mark.parametrize(("name", "scorer_name"), COMBINATIONS)
def test_strips_equal_the_full_matrix(name, scorer_name, in_strips):
    scorer, tokens = SCORERS[scorer_name]
    batches = [random_batch(seed, tokens=tokens) for seed in range(NUM_SEEDS)]
    expected = [value_and_gradients(name, batch, scorer) for batch in batches]
    assert any(float(gradients[0].norm()) > 1e-3 for _, gradients in expected)
    for number, (batch, wanted) in enumerate(zip(batches, expected, strict=True)):
        in_strips((1, 3)[number % 2])
        assert_close(value_and_gradients(name, batch, scorer), wanted, 1e-12)


PAIRED = [name for name in CASES if name.startswith(("infonce", "supcon", "cosent in_batch", "colbert", "mrl"))]


@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("name", [*PAIRED, "preference infonce"])
def test_positives_that_are_too_many_to_keep_are_made_anew(name, kept, in_strips, monkeypatch):
    """In batches of large classes; kept: so many pairs, of which the first strips may have fewer."""
    scorer, tokens = SCORERS["maxsim" if name.startswith("colbert") else "cosine"]
    batches = [random_batch(seed, tokens=tokens, num_keys=2) for seed in range(NUM_SEEDS)]
    expected = [value_and_gradients(name, batch, scorer) for batch in batches]
    in_strips(2)
    monkeypatch.setattr(contrasts, "PAIRS_KEPT", kept)
    sizes = []
    real = contrasts._Pairs.all
    monkeypatch.setattr(contrasts._Pairs, "all", lambda pairs: sizes.append(len(real(pairs)[0])) or real(pairs))
    for batch, wanted in zip(batches, expected, strict=True):
        assert_close(value_and_gradients(name, batch, scorer), wanted, 1e-12)
    assert max(sizes) <= kept
    assert len(sizes) >= NUM_SEEDS


@pytest.mark.parametrize("name", ["infonce own sides", "supcon", "infonce smoothed"])
def test_the_gradient_of_pairs_made_anew_is_the_derivative(name, in_strips, monkeypatch):
    batch = random_batch(5, num_keys=2)
    in_strips(2)
    monkeypatch.setattr(contrasts, "PAIRS_KEPT", 0)

    def function(queries, documents, scale, bias):
        return evaluate(
            name, type(batch)(Embeddings(queries), Embeddings(documents), batch.targets, scale, bias), cosine
        )

    assert torch.autograd.gradcheck(function, tuple(batch.leaves), fast_mode=True)


@pytest.mark.parametrize("name", ["infonce", "infonce smoothed", "sigmoid", "supcon"])
def test_in_float32_strips_equal_the_full_matrix_to_rounding(name, in_strips):
    batches = [random_batch(seed).to(torch.float32) for seed in range(NUM_SEEDS)]
    expected = [value_and_gradients(name, batch, cosine) for batch in batches]
    in_strips(2)
    for batch, wanted in zip(batches, expected, strict=True):
        assert_close(value_and_gradients(name, batch, cosine), wanted, 1e-6)


@pytest.mark.parametrize("name", ["infonce", "triplet hard"])
def test_both_sides_of_the_border_of_size_agree(name, monkeypatch):
    batch = random_batch(3)
    size = num_rows(batch.queries) * num_rows(batch.documents)
    made = []
    real = strips.ScoreStrips

    def noted(*args, **kwargs):
        made.append(kwargs)
        return real(*args, **kwargs)

    for module in (strips, contrasts):
        monkeypatch.setattr(module, "ScoreStrips", noted)
    monkeypatch.setattr(strips, "DENSE_SCORES", size)
    at_once = value_and_gradients(name, batch, cosine)
    assert made == []
    monkeypatch.setattr(strips, "DENSE_SCORES", size - 1)
    assert_close(value_and_gradients(name, batch, cosine), at_once, 1e-12)
    assert made


@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_strips_never_hold_all_scores(name, in_strips, monkeypatch):
    batch = random_batch(2)
    in_strips(2)
    monkeypatch.setattr(ScoreView, "dense", lambda _view: pytest.fail("the full matrix was made"))
    seen = []
    product = strips.inner_products
    monkeypatch.setattr(strips, "inner_products", lambda *sides: seen.append(len(sides[0])) or product(*sides))
    value_and_gradients(name, batch, cosine)
    assert set(seen) <= {1, 2}
    assert len(seen) > 1


@pytest.mark.parametrize("name", ["infonce", "infonce own sides", "sigmoid", "triplet all", "colbert"])
def test_the_gradient_of_strips_is_the_derivative(name, in_strips):
    scorer, tokens = (maxsim, 2) if name == "colbert" else (cosine, None)
    batch = random_batch(5, tokens=tokens)
    in_strips(2)

    def function(queries, documents, scale, bias):
        sides = Embeddings(queries, batch.queries.mask), Embeddings(documents, batch.documents.mask)
        return evaluate(name, type(batch)(*sides, batch.targets, scale, bias), scorer)

    assert torch.autograd.gradcheck(function, tuple(batch.leaves), fast_mode=True)


@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_without_anything_to_learn_strips_give_the_value_alone(name, in_strips):
    batch = random_batch(5)
    expected = evaluate(name, batch, cosine)
    in_strips(2)
    with torch.no_grad():
        value = evaluate(name, batch, cosine)
    assert not value.requires_grad
    assert torch.allclose(value, expected)


@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_the_gradient_of_a_frozen_side_is_not_missed(name, in_strips):
    batch = random_batch(5)
    expected = torch.autograd.grad(evaluate(name, batch, cosine), batch.documents.vectors)[0]
    in_strips(2)
    batch.queries.vectors.requires_grad_(False)
    gradient = torch.autograd.grad(evaluate(name, batch, cosine), batch.documents.vectors)[0]
    assert torch.allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("num_documents", "rows"), [(700, 374), (2048, 128), (4096, 128), (8192, 128), (16_384, 64), (2**21, 1), (0, 2**18)]
)
def test_a_strip_has_rows_enough_for_a_product_and_few_scores(num_documents, rows):
    queries, documents = Embeddings(torch.zeros(1, 4)), Embeddings(torch.zeros(num_documents, 4))
    assert strips.strip_rows(ScoreView(queries, documents, cosine, torch.ones(1), None)) == rows


def test_scores_of_tokens_are_made_at_once_up_to_more_of_them(monkeypatch):
    monkeypatch.setattr(strips, "DENSE_SCORES", 4)
    single, tokens = Embeddings(torch.zeros(4, 4)), Embeddings(torch.zeros(4, 3, 4))
    one = torch.ones(1)
    assert not strips.is_small(ScoreView(single, single, cosine, one))
    assert strips.is_small(ScoreView(tokens, tokens, maxsim, one))
    assert not strips.is_small(ScoreView(tokens, Embeddings(torch.zeros(5, 3, 4)), maxsim, one))
