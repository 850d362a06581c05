"""The table of losses: what its rows hold, how it is written, and two steps of it."""

import sys

import pytest

from benchmark.loss_table import CONTENDERS, Contender, Result, main, table, with_others
from vembed.losses.registry import LossRegistry

KEYS = ["1f600", "1f601", "1f602", "1f603"]
ROWS = [
    {"query": "grinning", "positive": ["images/a/1f600.png", "images/b/1f600.png"], "group": "1f600"},
    {"query": "images/a/1f601.png", "positive": "images/b/1f601.png", "group": "1f601"},
]


def test_others_are_never_the_rows_own_emoji():
    for seed in range(20):
        for row, old in zip(with_others(ROWS, KEYS, None, seed), ROWS, strict=True):
            assert row.items() >= old.items()
            assert "score" not in row
            assert len(set(row["negatives"])) == 2
            assert not {name for name in row["negatives"] if old["group"] in name}
            assert all(name.startswith("images/b/") for name in row["negatives"])
    assert with_others(ROWS, KEYS, None, 1) == with_others(ROWS, KEYS, None, 1) != with_others(ROWS, KEYS, None, 2)


def test_scores_stand_in_the_order_of_positives_and_negatives():
    teacher = {"1f600": 0.0, "1f601": 0.1, "1f602": 0.2, "1f603": 0.3}
    for row in with_others(ROWS, KEYS, lambda _own, other: teacher[other], 0):
        num_own = 2 if isinstance(row["positive"], list) else 1
        named = [teacher[name.removeprefix("images/b/").removesuffix(".png")] for name in row["negatives"]]
        assert row["score"] == [1.0] * num_own + named


def test_every_contender_is_given_what_its_loss_needs():
    for one in CONTENDERS:
        loss = LossRegistry.get(one.loss_type)
        needs = loss.needs(loss.settings.model_validate(dict(one.options)))
        assert {"none": True, "unread": True, "any": one.rows == "teacher", "binary": one.rows == "labels"}[
            needs.scores
        ]
        assert one.rows != "pairs" or not needs.negatives
    assert len(CONTENDERS) >= 14


BASE = Result((0.5, 0.6, 3.0, 4.0), 0)


def test_the_table_marks_the_best_of_each_column():
    contenders = [Contender("infonce"), Contender("cosent", {"cosent_pairs": "in_batch"}, rows="teacher")]
    lines = table(contenders, [Result((1.0, 20.0, 3.0, 4.0), 61.4), Result((2.0, 10.0, 3.0, 5.0), 7.0)], BASE)
    assert lines == [
        "| loss | rows hold | t2i R@1 | t2i R@10 | i2i R@1 | i2i R@10 | training |",
        "|---|---|---|---|---|---|---|",
        "| untrained | | 0.5 | 0.6 | 3.0 | 4.0 | |",
        "| `infonce` | pairs | 1.0 | **20.0** | **3.0** | 4.0 | 61 s |",
        "| `cosent`, `cosent_pairs: in_batch` | teacher | **2.0** | 10.0 | **3.0** | **5.0** | 7 s |",
    ]


@pytest.mark.slow
def test_losses_of_every_kind_of_rows_train_two_steps(demo_folder, capsys, monkeypatch):
    words = ["--folder", str(demo_folder), "--losses", "arcface", "contrastive", "margin_mse", "preference"]
    monkeypatch.setattr(sys, "argv", ["loss_table.py", *words, "--steps", "2", "--batch_size", "6"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 steps of 6 rows, seed 0, test emoji"
    assert [line.split(" | ")[1] for line in lines[5:]] == ["pairs", "labels", "teacher", "negatives"]
    assert lines[4].startswith("| untrained | |")
    for line in lines[5:]:
        assert all(0 <= float(value.strip("*")) <= 100 for value in line.split(" | ")[2:6])
