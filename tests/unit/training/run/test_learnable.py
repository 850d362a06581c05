"""Training data that can teach nothing is refused, or told, before a model is opened."""

import pytest

from tests.pictures import write_jsonl, write_pairs
from vembed.data.dataset import VisualRetrievalDataset, load_datasets
from vembed.data.settings import DataSettings
from vembed.errors import DataError
from vembed.losses.lacks import batch_check
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.losses.teacher_needs import row_needs
from vembed.training.run.learnable import check_rows_teach


def _check(tmp_path, *sets, batch_size=8, loss_type="infonce", mode="t2t", options=None, **settings):
    entries = [
        {"path": write_jsonl(tmp_path / f"{number}.jsonl", rows), "name": f"set {number}"}
        if isinstance(rows, list)
        else rows
        for number, rows in enumerate(sets)
    ]
    data = DataSettings.model_validate({"data_path": entries, "retrieval_mode": mode, **settings})
    options = LossRegistry.get(loss_type).settings.model_validate(options or {})
    loss = LossSettings(loss_type=loss_type)
    check_rows_teach(
        load_datasets(data.data_path, data, needs=LossRegistry.get(loss_type).needs(options)),
        data,
        batch_check(loss, options),
        batch_size=batch_size,
    )


def _rows(count, **columns):
    """`count` rows; a column that is a function gets the row's number."""
    rows = []
    for number in range(count):
        row = {"query": f"q{number}", "positive": f"p{number}"}
        row |= {name: value(number) if callable(value) else value for name, value in columns.items()}
        rows.append(row)
    return rows


def test_rows_with_something_to_compare_pass_after_a_look_at_a_few(tmp_path, monkeypatch):
    read = []
    real = VisualRetrievalDataset.__getitem__
    monkeypatch.setattr(VisualRetrievalDataset, "__getitem__", lambda data, i: read.append(i) or real(data, i))
    _check(tmp_path, _rows(5000, group=lambda number: number // 50))
    assert len(read) == 32


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"group": "shoes"}, "All of its rows are of one group"),
        ({"positive": "one"}, "All of its rows have one document"),
        ({"query": "one"}, "All of its rows have one query"),
        ({"positive": ["one", "other"]}, "To mend it"),
    ],
)
def test_rows_that_are_all_alike_are_refused_with_what_they_share(tmp_path, columns, cause):
    with pytest.raises(DataError, match=f"data set set 0 teaches nothing: no query has a negative .*{cause}"):
        _check(tmp_path, _rows(100, **columns))
    _check(tmp_path, _rows(100, **columns, negatives=["far"]))


def test_one_picture_for_all_rows_is_refused(tmp_path):
    write_pairs(tmp_path, 1, "t2i")
    rows = _rows(20, positive="p0.png")
    (tmp_path / "p0.png").write_bytes(next(tmp_path.glob("*.png")).read_bytes())
    with pytest.raises(DataError, match="one document"):
        _check(tmp_path, rows, mode="t2i")


def test_a_batch_of_one_row_is_refused_without_negatives_of_its_own(tmp_path):
    with pytest.raises(DataError, match=r"A batch is a single row \(batch_size: 1\).*larger batch_size"):
        _check(tmp_path, _rows(40), batch_size=1)
    _check(tmp_path, _rows(40, negatives=["far"]), batch_size=1)
    with pytest.raises(DataError, match="single row"):
        _check(tmp_path, _rows(40, negatives=["far"]), batch_size=1, num_hard_negatives=0)


def test_losses_that_need_no_negative_train_on_single_rows(tmp_path):
    _check(tmp_path, _rows(40, group=lambda number: number % 2), batch_size=1, loss_type="arcface")


def test_sorted_rows_are_read_in_another_order(tmp_path):
    """Of 4,000 rows of one group and 4,000 of another not half have to be read."""
    _check(tmp_path, _rows(8000, group=lambda number: number // 4000))


def test_two_kinds_that_meet_in_one_row_only_are_found(tmp_path):
    _check(tmp_path, _rows(2000, group=lambda number: "other" if number == 1999 else "one"))


@pytest.mark.parametrize("score", [0.5, 3])
def test_scores_that_are_all_equal_are_refused(tmp_path, score):
    with pytest.raises(DataError, match="all scores are equal"):
        _check(tmp_path, _rows(50, score=score), loss_type="cosent")
    _check(tmp_path, _rows(50, score=lambda number: score + (number == 30)), loss_type="cosent")


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind_are_told(tmp_path, caplog, label):
    _check(tmp_path, _rows(50, score=label), loss_type="contrastive")
    assert f"all labels are {label}" in caplog.text
    caplog.clear()
    _check(tmp_path, _rows(50, score=lambda number: number % 2), loss_type="contrastive")
    assert not caplog.records


def test_a_set_among_others_that_teaches_nothing_is_told(tmp_path, caplog):
    _check(tmp_path, _rows(40), _rows(1), _rows(40, group="one"))
    assert "set 1 teaches nothing" in caplog.text
    assert "It gives a single row an epoch, of 1 with weight 1" in caplog.text
    assert "set 2 teaches nothing" in caplog.text
    with pytest.raises(DataError, match=r"set 0 .*\n.*set 1"):
        _check(tmp_path, _rows(1), _rows(40, group="one"))


def test_rows_that_cannot_be_used_are_left_to_the_loader(tmp_path):
    _check(tmp_path, ["{broken", *_rows(3), "{}"])
    with pytest.raises(DataError, match="one group"):
        _check(tmp_path, ["{broken", *_rows(30, group="one"), "{}"])
    _check(tmp_path, _rows(3, positive=""))


def test_teachers_scores_that_are_equal_are_told(tmp_path, caplog):
    columns = {"negatives": lambda number: [f"n{number}"]}
    _check(tmp_path, _rows(40, score=[1, 1], **columns), loss_type="margin_mse")
    assert "data set set 0 teaches nothing: each row gives all of its documents one score" in caplog.text
    caplog.clear()
    _check(tmp_path, _rows(40, score=lambda number: [1 + number % 2, 1], **columns), loss_type="margin_mse")
    assert not caplog.records


@pytest.mark.parametrize("is_told", [True, False])
def test_a_teacher_with_one_embedding_for_all_documents_is_told(tmp_path, caplog, is_told):
    columns = {
        "query_embedding": lambda number: [1, number],
        "positive_embeddings": lambda number: [[1, 1 if is_told else number]],
    }
    data = DataSettings(data_path=write_jsonl(tmp_path / "rows.jsonl", _rows(40, **columns)), retrieval_mode="t2t")
    loss = LossSettings(teacher_embeddings=True, use_distillation=True, distillation_alpha=1)
    options = LossRegistry.get("infonce").settings()
    sets = load_datasets(data.data_path, data, needs=row_needs(loss, options))
    check_rows_teach(sets, data, batch_check(loss, options), batch_size=8)
    assert ("the teacher has one embedding for all documents" in caplog.text) == is_told
