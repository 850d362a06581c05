"""Every loss with every kind of model and data: through the gradient cache, in strips, the gradients are those of the
plain step on the full matrix; or the combination is refused and says why."""

from collections import Counter
from typing import Any

import pytest

from tests.gradients import assert_gradients_equal
from tests.loss_cells import CELLS, CHUNK, LOSSES, gradients_of, make_batch, open_models, settings_of, why_refused
from vembed.errors import ConfigError
from vembed.losses import contrasts, strips
from vembed.losses.registry import LossRegistry

# What only rows can lack; test_scores.py and test_records.py show that those without are refused.
NEEDS_OF_ROWS = {
    "explicit negatives": lambda needs: needs.negatives,
    "a class of every row": lambda needs: needs.groups,
}


def quick_and_slow(losses: list[str]) -> list[Any]:  # Any: pytest's own type of a parameter
    """The quick tests have a loss of each kind: contrasts, tokens, pairs, scores, classes, preferences."""
    quick = {"infonce", "colbert", "triplet", "margin_mse", "arcface", "preference"}
    assert quick <= set(losses)
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in losses]


@pytest.fixture(scope="module")
def models(bert_folder):
    return open_models(bert_folder)


@pytest.mark.parametrize("loss_type", quick_and_slow(LOSSES))
def test_cached_in_strips_equals_plain_on_the_full_matrix(loss_type, models, monkeypatch):
    kinds = Counter()
    for _, kind, negatives, groups, use_mrl, teacher in (cell for cell in CELLS if cell[0] == loss_type):
        reason, pair = why_refused(loss_type, kind, negatives, teacher, groups=groups), models[kind]
        settings = settings_of(pair, loss_type, teacher, use_mrl=use_mrl)
        batch = make_batch(pair, negatives, groups=groups)
        kinds["refused" if reason else "equal"] += 1
        if reason in NEEDS_OF_ROWS:
            loss = LossRegistry.get(loss_type)
            assert NEEDS_OF_ROWS[reason](loss.needs(loss.settings()))  # rows without are refused as they are read
            continue
        if reason:
            with pytest.raises(ConfigError, match=reason):
                gradients_of(pair, batch, settings, None)
            continue
        expected_loss, expected = gradients_of(pair, batch, settings, None)
        with monkeypatch.context() as patch:
            patch.setattr(strips, "DENSE_SCORES", -1)
            for module in (strips, contrasts):
                patch.setattr(module, "strip_rows", lambda _view: 2)
            loss, gradients = gradients_of(pair, batch, settings, CHUNK)
        assert loss == pytest.approx(expected_loss, rel=1e-10)
        assert loss > 0
        assert_gradients_equal(gradients, expected)
    assert sum(kinds.values()) == len(CELLS) // len(LOSSES)
    num_refused = {
        "colbert": 32,
        "contrastive": 24,
        "margin_mse": 28,
        "preference": 28,
        "arcface": 36,
        "proxy_anchor": 36,
    }
    assert kinds["refused"] == num_refused.get(loss_type, 8)


def test_the_matrix_holds_every_combination():
    assert len(CELLS) == 15 * 2 * 2 * 2 * 2 * 3 == 720
    refused = [cell for cell in CELLS if why_refused(*cell[:3], cell[5], groups=cell[3])]
    assert len(refused) == 32 + 24 + 28 + 28 + 36 + 36 + 9 * 8
