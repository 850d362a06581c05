"""A run that cannot learn, cannot choose, or is measured on what it was trained on, says so."""

import json
import re
from pathlib import Path

import pytest

from tests.pictures import write_pairs
from vembed.entrypoints.evaluate import evaluate
from vembed.errors import DataError
from vembed.trainer import Trainer


@pytest.fixture
def settings(tmp_path, clip_folder):
    """A short run over 24 rows, of which 6 are split off: three steps an epoch."""
    return {
        "model_name": clip_folder,
        "data_path": write_pairs(tmp_path / "pairs", 24, "t2i"),
        "output_dir": str(tmp_path / "run"),
        "val_fraction": 0.25,
        "batch_size": 6,
        "epochs": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report": False,
        "device": "cpu",
    }


def test_data_that_teaches_nothing_leaves_no_folder(tmp_path, settings):
    alike = write_pairs(tmp_path / "alike", 8, "t2i", groups=1)
    with pytest.raises(DataError, match="All of its rows are of one group"):
        Trainer(settings).train(data_path=alike, val_fraction=0)
    with pytest.raises(DataError, match="A batch is a single row"):
        Trainer(settings).train(data_path=write_pairs(tmp_path / "t2i", 8), val_fraction=0, batch_size=1)
    assert not (tmp_path / "run").exists()


def test_batches_of_one_class_are_told_while_training(tmp_path, settings, caplog):
    """Fifteen rows of a class and one of another: of eight batches of two rows, one can teach."""
    write_pairs(tmp_path / "few", 16, "t2i", groups=1)
    rows = [json.loads(line) for line in (tmp_path / "few" / "pairs.jsonl").read_text().splitlines()]
    rows[0]["group"] = "other"
    (tmp_path / "few" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"data_path": str(tmp_path / "few" / "pairs.jsonl"), "val_fraction": 0, "batch_size": 2, "epochs": 2}
    Trainer(settings).train(**few)
    (told,) = [text for text in caplog.messages if "taught nothing" in text]
    assert re.match(r"(8|9|10) of the first 10 batches taught nothing: in them no query has a negative", told)


def test_of_equal_evaluations_the_last_is_kept_and_told(tmp_path, settings, caplog):
    """A model that does not move: its figures are those of its base at every step."""
    result = Trainer(settings).train(learning_rate=1e-12, head_learning_rate=1e-12, eval_steps=2, report=True)
    assert result.best is not None
    assert result.best.step == 6
    assert "all 3 evaluations gave ndcg@10" in caplog.text
    assert "All 3 evaluations of the validation data gave ndcg@10" in (tmp_path / "run/report/report.md").read_text()


def test_rows_of_the_test_set_that_were_trained_on_are_in_the_report(tmp_path, settings, caplog):
    train = write_pairs(tmp_path / "train", 12, "t2i")
    own = {"data_path": train, "val_fraction": 0, "test_data_path": train, "report": True, "bootstrap_samples": 0}
    Trainer(settings).train(**own)
    said = "test set t2i: of its 12 rows 12 were also trained on (query and document in one row)"
    assert said in caplog.text
    record = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert [(one["name"], one["other"], one["pairs"]) for one in record["meta"]["overlaps"]] == [("t2i", "train", 12)]
    for name in ("report.html", "report.md"):
        assert "of its 12 rows 12 were also trained on" in (tmp_path / "run/report" / name).read_text()
    assert said in evaluate(tmp_path / "run").text()
    other = write_pairs(tmp_path / "other", 6, "t2i", seed=900)
    assert "also trained on" not in evaluate(tmp_path / "run", {"test_data_path": other}).text()
    (tmp_path / "train" / "two.jsonl").write_text("".join(Path(train).read_text().splitlines(keepends=True)[:2]))
    some = {"test_data_path": str(tmp_path / "train" / "two.jsonl")}
    assert "of its 2 rows 2 were also trained on" in evaluate(tmp_path / "run", some).text()
