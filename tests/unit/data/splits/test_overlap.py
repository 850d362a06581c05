"""What test and validation rows share with those that are trained on."""

import base64
import shutil

import pytest

from tests.pictures import write_jsonl, write_pairs, write_picture
from vembed.data.settings import DataSettings
from vembed.data.splits import duplicates
from vembed.training.run.data import read_run_data


@pytest.fixture
def overlaps(tmp_path):
    """A function: rows by role -> (role, other) -> the overlap."""

    def find(mode="t2t", **roles):
        paths = {
            f"{key}_path": write_jsonl(tmp_path / f"{key}.jsonl", rows) if isinstance(rows, list) else rows
            for key, rows in roles.items()
            if key.endswith("data")
        }
        others = {key: value for key, value in roles.items() if not key.endswith("data")}
        if "val_data" not in roles:
            others.setdefault("val_fraction", 0)
        data = read_run_data(DataSettings.model_validate({**paths, **others, "retrieval_mode": mode}), seed=0)
        return {(one.role, one.other): one for one in data.overlaps}

    return find


def _pairs(start, stop, **columns):
    return [{"query": f"q{number}", "positive": f"p{number}", **columns} for number in range(start, stop)]


def _counts(overlap):
    return overlap.num_rows, overlap.queries, overlap.documents, overlap.pairs


def test_sets_of_their_own_share_nothing_and_nothing_is_said(overlaps, caplog):
    assert overlaps(data=_pairs(0, 40), val_data=_pairs(40, 60), test_data=_pairs(60, 80)) == {}
    assert not caplog.records


def test_rows_that_were_trained_on_are_counted_per_set_and_told(overlaps, caplog):
    found = overlaps(data=_pairs(0, 40), val_data=_pairs(30, 50), test_data=_pairs(35, 55))
    assert {place: _counts(one) for place, one in found.items()} == {
        ("validation", "train"): (20, 10, 10, 10),
        ("test", "train"): (20, 5, 5, 5),
        ("test", "validation"): (20, 15, 15, 15),
    }
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "test set t2t: of its 20 rows 5 were also trained on (query and document in one row)" in caplog.text
    assert (
        "test set t2t: of its 20 rows 15 were also in the validation set, which chooses the checkpoint" in caplog.text
    )


def test_rows_that_were_split_off_were_not_trained_on(overlaps):
    rows = _pairs(0, 40)
    found = overlaps(data=rows, test_data=rows, val_fraction=0.25)
    assert _counts(found["test", "train"]) == (40, 30, 30, 30)
    assert _counts(found["test", "validation"]) == (40, 10, 10, 10)


def test_queries_documents_and_pairs_are_told_apart(overlaps):
    train = _pairs(0, 40)
    other_documents = [{"query": f"q{number}", "positive": f"new {number}"} for number in range(10)]
    other_queries = [{"query": f"new {number}", "positive": f"p{number}"} for number in range(10)]
    crossed = [{"query": f"q{number}", "positive": f"p{number + 1}"} for number in range(10)]
    turned = [{"query": f"p{number}", "positive": f"q{number}"} for number in range(10)]
    expected = {0: (10, 10, 0, 0), 1: (10, 0, 10, 0), 2: (10, 10, 10, 0), 3: (10, 10, 10, 10)}
    for number, rows in enumerate((other_documents, other_queries, crossed, turned)):
        assert _counts(overlaps(data=train, test_data=rows)["test", "train"]) == expected[number]


def test_documents_alone_may_be_a_collection_that_both_search(overlaps, caplog):
    caplog.set_level("INFO")
    rows = [{"query": f"new {number}", "positive": f"p{number}"} for number in range(10)]
    overlaps(data=_pairs(0, 40), test_data=rows)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "right where both search one collection, else figures are too good" in record.getMessage()


def test_names_of_classes_are_no_leak(overlaps, caplog):
    caplog.set_level("INFO")
    train, test = ([{"query": f"{role} {n}", "positive": f"class {n % 3}"} for n in range(60)] for role in "ab")
    found = overlaps(data=train, test_data=test)
    assert _counts(found["test", "train"]) == (60, 0, 60, 0)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert found["test", "train"].by_design


def test_a_shared_class_is_no_overlap(overlaps):
    train, test = (_pairs(*numbers, group="shoes") for numbers in ((0, 20), (20, 40)))
    assert overlaps(data=[*train, *_pairs(90, 95)], test_data=test) == {}


def test_texts_are_equal_as_they_are_written(overlaps):
    rows = [{"query": f" q{number}", "positive": f"P{number}"} for number in range(10)]
    assert overlaps(data=_pairs(0, 40), test_data=rows) == {}


def test_pictures_are_equal_by_their_bytes_wherever_they_lie(overlaps, tmp_path):
    train = write_pairs(tmp_path / "here", 12, "i2i")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for number, path in enumerate((tmp_path / "there").glob("*.png")):
        path.rename(path.with_name(f"other {number}.png"))
    names = sorted(path.name for path in (tmp_path / "there").glob("*.png"))
    lines = [
        {"query": f"there/{one}", "positive": f"there/{two}"} for one, two in zip(names[:6], names[6:12], strict=True)
    ]
    found = overlaps("i2i", data=train, test_data=lines)
    assert _counts(found["test", "train"])[:3] == (6, 6, 6)
    assert overlaps("i2i", data=train, test_data=train)["test", "train"].pairs == 12
    other = write_pairs(tmp_path / "else", 12, "i2i", seed=900)
    assert overlaps("i2i", data=train, test_data=other) == {}


def test_a_picture_within_the_data_equals_the_file_with_its_bytes(overlaps, tmp_path):
    train = write_pairs(tmp_path / "here", 12, "t2i")
    path = next((tmp_path / "here").glob("*.png"))
    held = base64.b64encode(path.read_bytes()).decode()
    rows = [{"query": "new", "positive": f"data:image/png;base64,{held}"}, *_pictures(tmp_path)]
    assert _counts(overlaps("t2i", data=train, test_data=rows)["test", "train"]) == (2, 0, 1, 0)


def _pictures(folder):
    write_picture(folder / "new.png", 5000)
    return [{"query": "another", "positive": "new.png"}]


def test_text_and_picture_of_one_item_are_one_content(overlaps, tmp_path):
    """ "in red" is asked of many pictures, and a picture with other words is another query."""
    for number in range(6):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [
        {"query": {"text": text, "image": f"{number}.png"}, "positive": f"{number + 3}.png"}
        for number, text in ((0, "in red"), (1, "in blue"))
    ]
    same = [{"query": {"text": "in red", "image": "0.png"}, "positive": "5.png"}]
    other = [{"query": {"text": "in red", "image": "1.png"}, "positive": "5.png"}]
    train = [*rows, {"query": {"text": "in green", "image": "2.png"}, "positive": "2.png"}]
    assert _counts(overlaps("m2i", data=train, test_data=same)["test", "train"]) == (1, 1, 0, 0)
    assert overlaps("m2i", data=train, test_data=other) == {}


def test_only_pictures_that_may_be_equal_are_read(overlaps, tmp_path, monkeypatch):
    write_pairs(tmp_path / "here", 30, "t2i")
    read = []
    real = duplicates._ends_key
    monkeypatch.setattr(duplicates, "_ends_key", lambda path: read.append(path) or real(path))
    (tmp_path / "here" / "large.png").write_bytes(b"\x89PNG" + bytes(100_000))
    test = [{"query": "new", "positive": "here/large.png"}]
    assert overlaps("t2i", data=str(tmp_path / "here" / "pairs.jsonl"), test_data=test) == {}
    assert read == []


def test_rows_that_cannot_be_used_are_not_counted(overlaps):
    found = overlaps(
        data=[*_pairs(0, 40), "{broken"], test_data=[*_pairs(35, 40), "{}"], on_bad_sample="skip", max_bad_fraction=0.5
    )
    assert _counts(found["test", "train"]) == (5, 5, 5, 5)


@pytest.mark.parametrize("role", ["data", "val_data"])
def test_a_row_that_is_used_without_a_document_is_looked_at_on_either_side(overlaps, tmp_path, role):
    for number in range(6):
        write_picture(tmp_path / f"{number}.png", number)
    sides = {
        "data": [{"query": f"q{number}", "positive": [f"{number}.png"]} for number in range(4)],
        "val_data": [{"query": f"q{number}", "positive": [f"{number}.png"]} for number in (2, 4, 5)],
    }
    shared = next(row for row in sides[role] if row["query"] == "q2")
    shared["positive"].insert(0, "gone.png")
    shared["negatives"] = ["gone too.png"]
    unusable = next(row for row in sides[role] if row["query"] != "q2")
    unusable.update(query="q2", positive=["gone.png"])
    found = overlaps("t2i", **sides, on_bad_sample="skip", max_bad_fraction=1)
    num_rows = 3 if role == "data" else 2
    assert {place: _counts(one) for place, one in found.items()} == {("validation", "train"): (num_rows, 1, 1, 1)}
