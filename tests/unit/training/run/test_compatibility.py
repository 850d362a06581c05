import pytest

from vembed.errors import ConfigError
from vembed.training.run.compatibility import check_same_run

SAVED = {"learning_rate": 1e-4, "epochs": 3, "max_steps": None, "output_dir": "a", "learning_rates": {"text": 0}}
ROWS = {"t2i": 10, "i2i": 5}


DEFAULTS = {"seed": 42, "freeze_layers": {}, "hardness_strength": None, "hardness_on": "all"}


def check(**now):
    check_same_run(SAVED, {**SAVED, **now}, defaults=DEFAULTS, saved_rows=ROWS, rows=ROWS)


def test_the_same_settings_go_on():
    check()


@pytest.mark.parametrize(
    "change",
    [
        {"max_steps": 9},
        {"epochs": 4},
        {"output_dir": "b"},
        {"logging_steps": 1},
        {"image_host_cache": "encoded"},
        {"gradient_cache_states_gib": 4.0},  # it decides what is computed twice
    ],
)
def test_what_does_not_change_the_training_may_change(change):
    check(**change)


def test_what_matters_is_refused_all_at_once():
    with pytest.raises(ConfigError) as error:
        check(learning_rate=2e-4, learning_rates={}, epochs=2, seed=3)
    lines = str(error.value).splitlines()
    assert lines[:4] == [
        "epochs: the checkpoint was trained with 3, now it is 2",
        "learning_rate: the checkpoint was trained with 0.0001, now it is 0.0002",
        "learning_rates: the checkpoint was trained with {'text': 0}, now it is {}",
        "seed: the checkpoint was trained with 42, now it is 3",
    ]
    assert "model_name: <checkpoint folder>" in lines[4]


def test_a_key_that_only_one_of_the_two_has_counts_as_its_default_in_the_other():
    check(seed=42, freeze_layers={})
    with pytest.raises(ConfigError) as error:
        check(freeze_layers={"text": 1}, hardness_strength=2.0, hardness_on="all")
    assert str(error.value).splitlines()[:-1] == [
        "freeze_layers: the checkpoint was trained with {}, now it is {'text': 1}",
        "hardness_strength: the checkpoint was trained with None, now it is 2.0",
    ]
    now = dict(SAVED)
    saved = {**SAVED, "hardness_on": "all", "seed": 3}
    with pytest.raises(ConfigError, match=r"^seed: the checkpoint was trained with 3, now it is 42\nContinuing"):
        check_same_run(saved, now, defaults=DEFAULTS, saved_rows=ROWS, rows=ROWS)
    with pytest.raises(ConfigError, match=r"^gone: the checkpoint was trained with 1, now it is None\nContinuing"):
        check_same_run({**SAVED, "gone": 1}, now, defaults=DEFAULTS, saved_rows=ROWS, rows=ROWS)


def test_without_a_temperature_the_checkpoints_own_goes_on():
    def check_temperatures(saved, now):
        rows = {"saved_rows": ROWS, "rows": ROWS}
        check_same_run({"temperature": saved}, {"temperature": now}, defaults={"temperature": None}, **rows)

    check_temperatures(0.05, None)
    with pytest.raises(ConfigError, match=r"temperature: the checkpoint was trained with 0.05, now it is 0.1"):
        check_temperatures(0.05, 0.1)
    with pytest.raises(ConfigError, match=r"temperature: the checkpoint was trained with None, now it is 0.1"):
        check_temperatures(None, 0.1)


def test_changed_data_is_refused():
    with pytest.raises(ConfigError, match="data set 't2i': it had 10 rows, now it has 11"):
        check_same_run(SAVED, SAVED, defaults=DEFAULTS, saved_rows=ROWS, rows={"t2i": 11, "i2i": 5})
    with pytest.raises(ConfigError, match="data set 'new': it had 0 rows, now it has 1"):
        check_same_run(SAVED, SAVED, defaults=DEFAULTS, saved_rows=ROWS, rows={**ROWS, "new": 1})


def test_a_checkpoint_that_says_auto_is_believed_to_have_been_trained_so():
    rows = {"defaults": {"mixed_precision": "auto"}, "saved_rows": ROWS, "rows": ROWS}
    for now in ("no", "bf16"):
        check_same_run({"mixed_precision": "auto"}, {"mixed_precision": now}, **rows)
    with pytest.raises(ConfigError, match="mixed_precision: the checkpoint was trained with 'bf16', now it is 'no'"):
        check_same_run({"mixed_precision": "bf16"}, {"mixed_precision": "no"}, **rows)
