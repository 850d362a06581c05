"""Preference: values worked out by hand, where it starts, what moves it, and what it takes as given."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.targets import make_targets
from tests.unit.losses.batches import evaluate, random_batch, value_and_gradients
from vembed.errors import UsageError
from vembed.losses.explicit_triplets import explicit_triplets
from vembed.losses.factory import LossFactory
from vembed.losses.functions.preference import preference_losses
from vembed.losses.settings import LossSettings, PreferenceSettings
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings, Sides

SCORERS = {"cosine": (cosine, None), "dot": (dot, None), "maxsim": (maxsim, 3)}


def by_hand(policy, reference, *, scale=1.0, targets=None, **options):
    """The loss of one query of width 1 whose documents have these scores."""
    query = Embeddings(torch.ones(1, 1, dtype=torch.float64))
    sides = [Embeddings(torch.tensor(scores, dtype=torch.float64)[:, None]) for scores in (policy, reference)]
    targets = targets or make_targets([[0]], len(policy), negatives=[list(range(1, len(policy)))])
    section = PreferenceSettings.model_validate(options)
    objective = LossFactory.create(LossSettings(loss_type="preference"), section, scorer=dot)
    return objective(
        query,
        sides[0],
        replace(targets, reference=Sides(query, sides[1])),
        logit_scale=torch.tensor([math.log(scale)], dtype=torch.float64),
    ).item()


def test_values_worked_out_by_hand():
    # The policy leads by 3, the reference led by 1: beta h = 0.5 * 2.
    assert by_hand([2, -1], [1, 0], preference_beta=0.5) == pytest.approx(math.log(1 + math.exp(-1)))
    assert by_hand([2, -1], [1, 0], preference_beta=0.5, scale=4.0) == pytest.approx(math.log(1 + math.exp(-4)))
    assert by_hand([2, -1], [1, 0], preference_beta=0.5, preference_label_smoothing=0.25) == pytest.approx(
        0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))
    )
    # Two rejected documents, one rise of 2 and one of -1.
    assert by_hand([2, -1, 2], [1, 0, 0], preference_beta=1.0) == pytest.approx(
        (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    )


def test_the_infonce_term_is_added_with_its_weight():
    alone, both = (by_hand([2, -1], [1, 0], preference_infonce_weight=weight) for weight in (0.0, 0.3))
    assert both - alone == pytest.approx(0.3 * math.log(1 + math.exp(-3)) / 2)  # one document has no rival query


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["preference", "preference smoothed", "preference mrl"])
@pytest.mark.parametrize("scorer_name", SCORERS)
def test_it_starts_at_exactly_log_2(name, scorer_name, dtype):
    scorer, tokens = SCORERS[scorer_name]
    batch = random_batch(5, tokens=tokens).to(dtype)
    assert len(explicit_triplets(batch.targets).queries) > 1
    same = replace(batch.targets, reference=Sides(batch.queries, batch.documents))
    loss = evaluate(name, replace(batch, targets=same), scorer)
    weight = 1.5 if name.endswith("mrl") else 1.0
    assert loss.item() == pytest.approx(weight * math.log(2), rel=1e-7 if loss.dtype == torch.float32 else 1e-15)


def test_a_smoothing_of_one_half_which_prefers_neither_way_is_refused():
    margins = torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(preference_losses(margins, 0.5), preference_losses(-margins, 0.5))
    assert not torch.allclose(preference_losses(margins, 0.49), preference_losses(-margins, 0.49), rtol=1e-3)
    with pytest.raises(ValidationError, match=r"less than 0\.5"):
        PreferenceSettings(preference_label_smoothing=0.5)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected():
    batch = random_batch(5)
    triplets = explicit_triplets(batch.targets)
    gradient = value_and_gradients("preference", batch, dot)[1][1]
    for query, chosen, rejected in zip(triplets.queries, triplets.positives, triplets.negatives, strict=True):
        if (triplets.positives == rejected).any() or (triplets.negatives == chosen).any():
            continue
        alone = (triplets.positives == chosen).sum() == 1 and (triplets.negatives == rejected).sum() == 1
        if alone:
            towards = -gradient @ batch.queries.vectors[query].detach()
            assert towards[chosen] > 0 > towards[rejected]


@pytest.mark.parametrize(("name", "learns"), [("preference", False), ("preference infonce", True)])
def test_the_temperature_learns_from_the_infonce_term_alone(name, learns):
    of_scale = value_and_gradients(name, random_batch(5), cosine)[1][2]
    assert bool(of_scale != 0) == learns


def test_the_temperature_changes_the_loss_all_the_same():
    batch = random_batch(5)
    other = replace(batch, logit_scale=batch.logit_scale.detach() + 1)
    assert evaluate("preference", other, cosine).item() != pytest.approx(evaluate("preference", batch, cosine).item())


def test_extreme_leads_stay_finite():
    assert by_hand([1e4, -1e4], [0, 0], preference_beta=10) == 0
    assert by_hand([-1e4, 1e4], [0, 0], preference_beta=10) == pytest.approx(2e5)


def test_without_triplets_there_is_nothing_to_learn():
    assert by_hand([1, 2], [3, 4], targets=make_targets([[0]], 2)) == 0
    assert by_hand([1, 2], [3, 4], targets=make_targets([[0, 1]], 2, negatives=[[1]])) == 0


def test_a_document_that_a_row_names_as_both_is_a_positive():
    triplets = explicit_triplets(make_targets([[0, 1], [2]], 4, negatives=[[1, 3], [3, 2]]))
    assert [tensor.tolist() for tensor in vars(triplets).values()] == [[0, 0, 1], [0, 1, 2], [3, 3, 3]]


def test_targets_without_a_reference_are_refused():
    batch = random_batch(5)
    with pytest.raises(UsageError, match=r"preference compares with Targets\.reference"):
        evaluate("preference", replace(batch, targets=replace(batch.targets, reference=None)), cosine)
