"""What a batch lacks to teach anything, against the gradients of the losses themselves."""

from dataclasses import replace

import pytest
import torch

from tests.targets import make_targets, ragged
from tests.unit.losses.batches import CASES, CLASS_LOSSES, has_meaning, random_batch, value_and_gradients
from vembed.losses.lacks import Lack, batch_check
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.scoring import cosine, maxsim
from vembed.types import Embeddings, Ragged, Sides, Targets

NUM_BATCHES = 60
# These may cost nothing, and so have no gradient, where there is something to compare.
WITH_MARGINS = (
    *("triplet hard", "triplet all", "triplet semi-hard", "triplet explicit", "contrastive"),
    *("infonce margin", "infonce margins"),
)


def _check(loss_type: str, **settings):
    section = LossRegistry.get(loss_type).settings
    own = {key: value for key, value in settings.items() if key in section.model_fields}
    shared = {key: value for key, value in settings.items() if key not in own}
    return batch_check(LossSettings.model_validate({"loss_type": loss_type, **shared}), section.model_validate(own))


def _lack(targets: Targets, loss_type: str, **settings) -> Lack | None:
    return _check(loss_type, **settings)(targets)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_lacks_something_has_no_gradient_and_every_other_has(name):
    scorer = cosine if has_meaning(name, cosine) else maxsim
    loss_type, options, shared = CASES[name]
    check = _check(loss_type, **options, **shared)
    seen = set()
    for seed in range(NUM_BATCHES):
        batch = random_batch(seed, tokens=None if scorer is cosine else 3, num_keys=(2, 4, 8)[seed % 3])
        lack = check(batch.targets)
        # By queries and documents: without a bias, which moves in any case.
        gradients = value_and_gradients(name, batch, scorer)[1][:2]
        moved = max(float(gradient.abs().max()) for gradient in gradients if gradient.numel()) > 1e-12
        seen.add((lack is None, moved))
        if lack is not None and not lack.moves:
            assert not moved, (seed, lack)
        if lack is None and name not in WITH_MARGINS and loss_type not in CLASS_LOSSES:
            assert moved, seed
    assert (True, True) in seen
    if LossRegistry.get(loss_type).lacks and not name.startswith("sigmoid") and name not in ("distillation",):
        assert {False} <= {has for has, _ in seen}, "no batch lacked anything"


PAIRS = make_targets([[0], [1], [2]], 3)
ONE_ROW = make_targets([[0]], 1)
ONE_GROUP = make_targets([[0], [1], [2]], 3, query_groups=[7] * 3, document_groups=[7] * 3)
ONE_DOCUMENT = make_targets([[0], [0], [0]], 1)
ONE_QUERY = make_targets([[0], [1], [2]], 3, query_hashes=[5, 5, 5])
WITH_NEGATIVE = make_targets([[0]], 2, negatives=[[1]])
IN_BATCH = ("infonce", "mrl", "colbert", "hard_negative", "in_batch_hard", "triplet", "supcon", "sigmoid")


@pytest.mark.parametrize("loss_type", IN_BATCH)
def test_a_query_without_a_negative_teaches_nothing(loss_type):
    for targets in (ONE_ROW, ONE_GROUP, ONE_DOCUMENT, ONE_QUERY):
        lack = _lack(targets, loss_type)
        assert lack is not None
        assert "no query has a negative" in lack.reason
    assert _lack(PAIRS, loss_type) is None
    assert _lack(WITH_NEGATIVE, loss_type) is None


def test_what_only_makes_everything_alike_is_told_apart():
    assert _lack(ONE_GROUP, "supcon").moves
    assert not _lack(ONE_ROW, "supcon").moves
    assert _lack(ONE_ROW, "sigmoid").moves
    assert not _lack(ONE_GROUP, "infonce").moves


def test_options_of_infonce_change_what_it_needs():
    """From documents to queries the documents of a single row have one query only, which each is a positive of."""
    assert _lack(WITH_NEGATIVE, "infonce", loss_direction="document_to_query") is not None
    assert _lack(WITH_NEGATIVE, "infonce", loss_direction="document_to_query", document_to_document=True) is None
    assert _lack(PAIRS, "infonce", loss_direction="document_to_query") is None


def _with_scores(*scores: float) -> Targets:
    one = torch.ones(len(scores), dtype=torch.int64)
    values = Ragged(torch.tensor(scores), one)
    return replace(PAIRS, scored=ragged([[0], [1], [2]]), scores=values)


def test_scores_that_are_all_equal_teach_no_order():
    assert "all scores are equal (0.5)" in _lack(_with_scores(0.5, 0.5, 0.5), "cosent").reason
    assert _lack(_with_scores(0.5, 0.5, 0.6), "cosent") is None
    assert _lack(_with_scores(0.5, 0.5, 0.5), "cosent", cosent_pairs="in_batch") is None


def test_labels_of_one_kind_only_pull_or_push():
    pulled, pushed = _lack(_with_scores(1, 1, 1), "contrastive"), _lack(_with_scores(0, 0, 0), "contrastive")
    assert (pulled.moves, "nothing is pushed apart" in pulled.reason) == (True, True)
    assert (pushed.moves, "nothing is pulled together" in pushed.reason) == (True, True)
    assert _lack(_with_scores(1, 0, 1), "contrastive") is None


@pytest.mark.parametrize("loss_type", ["margin_mse", "preference"])
def test_losses_of_triplets_need_one_that_a_row_names(loss_type):
    scored = replace(WITH_NEGATIVE, scored=ragged([[0, 1]]), scores=Ragged(torch.tensor([2.0, 1.0]), torch.tensor([2])))
    assert _lack(scored, loss_type) is None
    assert "no row has a negative of its own" in _lack(_with_scores(1, 2, 3), loss_type).reason
    assert _lack(PAIRS, "triplet", triplet_mining="explicit") is not None
    assert _lack(WITH_NEGATIVE, "triplet", triplet_mining="explicit") is None


def test_the_infonce_term_of_preference_teaches_without_triplets():
    assert _lack(PAIRS, "preference", preference_infonce_weight=0.5) is None
    assert _lack(ONE_GROUP, "preference", preference_infonce_weight=0.5) is not None


def test_classes_are_told_apart_whatever_the_batch():
    assert _lack(ONE_ROW, "arcface") is None
    assert _lack(ONE_GROUP, "proxy_anchor") is None


TEACHER = {"teacher_embeddings": True, "use_distillation": True}


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_distillation_that_copies_needs_no_negative(kind):
    assert _lack(ONE_ROW, "infonce", distillation_type=kind, **TEACHER) is None


def test_distillation_that_compares_needs_two_documents():
    assert _lack(ONE_ROW, "infonce", distillation_type="kl", **TEACHER) is not None
    assert _lack(ONE_GROUP, "infonce", distillation_type="kl", **TEACHER) is None
    assert _lack(ONE_GROUP, "infonce", distillation_type="margin_mse", **TEACHER) is not None
    assert _lack(PAIRS, "infonce", distillation_type="margin_mse", **TEACHER) is None
    assert _lack(_with_scores(1, 2, 3), "infonce", use_distillation=True) is None  # InfoNCE itself teaches
    assert _lack(_with_scores(1, 2, 3), "infonce", use_distillation=True, distillation_alpha=1.0) is not None


def test_a_large_batch_is_looked_at_in_strips():
    """A single negative among the last rows, and none."""
    groups = [7] * 1000
    one = make_targets([[row] for row in range(1000)], 1000, query_groups=groups, document_groups=groups)
    assert _lack(one, "infonce") is not None
    other = make_targets(
        [[row] for row in range(1000)], 1000, query_groups=[*groups[1:], 8], document_groups=[*groups[1:], 8]
    )
    assert _lack(other, "infonce") is None


TWO_TRIPLETS = make_targets([[0], [2]], 4, negatives=[[1], [3]])


def _graded(*scores: float) -> Targets:
    values = Ragged(torch.tensor(scores), torch.tensor([2, 2]))
    return replace(TWO_TRIPLETS, scored=ragged([[0, 1], [2, 3]]), scores=values)


@pytest.mark.parametrize(
    ("loss_type", "settings"),
    [
        ("margin_mse", {}),
        *(
            ("infonce", {"use_distillation": True, "distillation_type": kind, "distillation_alpha": alpha})
            for kind in ("kl", "margin_mse")
            for alpha in (0.5, 1)
        ),
    ],
)
def test_a_teachers_scores_that_are_equal_in_every_row_only_make_its_documents_alike(loss_type, settings):
    for scores in ((1, 1, 1, 1), (-3, -3, 0.5, 0.5)):
        lack = _lack(_graded(*map(float, scores)), loss_type, **settings)
        assert lack is not None
        assert lack.moves
        assert "one score" in lack.reason
    assert _lack(_graded(1.0, 1.0, 1.0, 0.0), loss_type, **settings) is None


@pytest.mark.parametrize("kind", ["mse", "cosine", "kl", "margin_mse"])
def test_a_teacher_with_one_embedding_for_all_documents_teaches_nothing(kind):
    vectors = torch.ones(4, 3)
    for documents, has_lack in ((vectors, True), (torch.cat([vectors[:3], -vectors[:1]]), False)):
        targets = replace(TWO_TRIPLETS, teacher=Sides(Embeddings(torch.eye(2, 3)), Embeddings(documents)))
        lack = _lack(targets, "infonce", distillation_type=kind, distillation_alpha=1, **TEACHER)
        assert (lack is not None) == has_lack
        assert lack is None or ("one embedding" in lack.reason and lack.moves)
