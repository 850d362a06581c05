"""A validation set that shares nothing with training."""

import json
import shutil

import pytest

from tests.pictures import write_jsonl, write_pairs
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.splits.split import load_split, save_split, split_validation
from vembed.errors import CheckpointError, DataError

ELSEWHERE = "some/where/else"


def _load(*sources):
    settings = DataSettings.model_validate({"data_path": list(sources), "retrieval_mode": "t2t"})
    return load_datasets(settings.data_path, settings)


def _rows(datasets):
    return {data.name: [data.origin(index) for index in range(len(data))] for data in datasets}


def _groups(datasets):
    return {data[index].group for data in datasets for index in range(len(data))}


@pytest.fixture
def classes(tmp_path):
    """A hundred rows of twenty classes."""
    return _load(write_pairs(tmp_path / "classes", 100, "t2t", groups=20))


def test_about_the_fraction_is_split_off_in_whole_groups(classes):
    split = split_validation(classes, 0.1, seed=0)
    assert (len(split.train[0]), len(split.validation[0])) == (90, 10)
    assert not _groups(split.train) & _groups(split.validation)
    assert len(_groups(split.validation)) == 2
    whole = sorted(_rows(split.train)["t2t"] + _rows(split.validation)["t2t"])
    assert whole == sorted(_rows(classes)["t2t"])
    assert split.validation[0].name == split.train[0].name == "t2t"


def test_the_split_is_a_function_of_content_and_seed(classes, tmp_path):
    rows = [_rows(split_validation(classes, 0.1, seed=seed).validation) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    lines = (tmp_path / "classes" / "pairs.jsonl").read_text().splitlines()
    shuffled = _load(write_jsonl(tmp_path / "shuffled.jsonl", lines[50:] + lines[:50]))
    assert _groups(split_validation(shuffled, 0.1, seed=0).validation) == _groups(
        split_validation(classes, 0.1, seed=0).validation
    )


def test_the_same_data_in_another_folder_is_split_in_the_same_way(tmp_path):
    write_pairs(tmp_path / "here", 40, "i2i")
    shutil.copytree(tmp_path / "here", tmp_path / ELSEWHERE)
    entries = [
        {"path": str(tmp_path / place / "pairs.jsonl"), "retrieval_mode": "i2i"} for place in ("here", ELSEWHERE)
    ]
    splits = [split_validation(_load(entry), 0.2, seed=0) for entry in entries]
    lines = [[origin.rpartition(":")[2] for origin in _rows(split.validation)["i2i"]] for split in splits]
    assert len(lines[0]) == 8
    assert lines[0] == lines[1]


def test_at_least_two_components_are_split_off(tmp_path):
    """One row, or one class, is a set in which everything that is found is right."""
    split = split_validation(_load(write_pairs(tmp_path, 6, "t2t")), 0.05, seed=0)
    assert (len(split.train[0]), len(split.validation[0])) == (4, 2)
    tens = _load(write_pairs(tmp_path / "tens", 200, "t2t", groups=10))
    for seed in range(5):
        split = split_validation(tens, 0.05, seed=seed)
        assert (len(_groups(split.validation)), len(split.validation[0])) == (2, 40)


def test_a_component_that_is_not_all_alike_is_enough(tmp_path):
    """Ten queries that lead to one another by a chain of documents, each relevant to two of them."""
    rows = [{"query": f"q{i}", "positive": f"p{i}", "group": i % 2} for i in range(90)]
    chain = [{"query": f"c{i}", "positive": [f"d{i}", f"d{i + 1}"]} for i in range(10)]
    split = split_validation(_load(write_jsonl(tmp_path / "d.jsonl", [*rows, *chain])), 0.1, seed=0)
    assert {split.validation[0][index].group for index in range(10)} == {None}
    alike = [{"query": f"c{i}", "positive": ["d", f"d{i + 1}"]} for i in range(10)]  # d is relevant to all of them
    with pytest.raises(DataError, match="3 connected parts of 45, 45, 10 rows"):
        split_validation(_load(write_jsonl(tmp_path / "e.jsonl", [*rows, *alike])), 0.1, seed=0)


def test_a_size_that_is_far_from_the_wanted_one_is_told(tmp_path, caplog):
    split_validation(_load(write_pairs(tmp_path, 200, "t2t", groups=40)), 0.05, seed=0)
    assert not caplog.records
    split_validation(_load(write_pairs(tmp_path / "tens", 200, "t2t", groups=10)), 0.05, seed=0)
    assert "validation has 40 of the 200 rows, where val_fraction: 0.05 asks for 10" in caplog.text
    caplog.clear()
    chain = [{"query": f"q{i}", "positive": [f"p{i}", f"p{i + 1}"]} for i in range(97)]
    rows = [*chain, *({"query": f"alone {i}", "positive": f"p alone {i}"} for i in range(3))]
    split = split_validation(_load(write_jsonl(tmp_path / "d.jsonl", rows)), 0.1, seed=0)
    assert len(split.validation[0]) == 3
    assert "validation has 3 of the 100 rows" in caplog.text


def test_a_huge_component_stays_in_train(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "group": "big" if i < 90 else f"g{i}"} for i in range(100)]
    data = _load(write_jsonl(tmp_path / "d.jsonl", rows))
    for seed in range(20):
        assert len(split_validation(data, 0.05, seed=seed).validation[0]) == 5


@pytest.mark.parametrize("sizes", [(50, 50), (70, 30), (34, 33, 33), (20,) * 5, (90, 5, 5), (96, 4)])
def test_components_too_large_to_part_are_refused_with_their_sizes(tmp_path, sizes):
    """Never most of the rows, nor a single class, on either side."""
    classes = [name for name, size in enumerate(sizes) for _ in range(size)]
    rows = [{"query": f"q{i}", "positive": f"p{i}", "group": name} for i, name in enumerate(classes)]
    data = _load(write_jsonl(tmp_path / "d.jsonl", rows))
    with pytest.raises(DataError, match=f"100 rows .* in {len(sizes)} connected parts of {', '.join(map(str, sizes))}"):
        split_validation(data, 0.05, seed=0)


def test_the_fraction_that_would_do_is_named(tmp_path):
    data = _load(write_pairs(tmp_path, 100, "t2t", groups=5))
    with pytest.raises(DataError, match=r"val_fraction: 0\.40 if so many may go"):
        split_validation(data, 0.05, seed=0)
    assert len(_groups(split_validation(data, 0.4, seed=0).validation)) == 2


@pytest.mark.parametrize("bad", ["{broken", '{"query": "", "positive": "p"}', '{"query": "q"}'])
def test_rows_that_cannot_be_read_are_no_training_rows(tmp_path, bad):
    rows = [{"query": f"item {i % 40}", "positive": f"county {i % 7}"} for i in range(300)]
    data = _load(write_jsonl(tmp_path / "d.jsonl", [*rows, bad, bad]))
    with pytest.raises(DataError, match=r"the 300 rows share .* in 1 connected part; pass val_data_path"):
        split_validation(data, 0.05, seed=0)


@pytest.mark.parametrize("content", [None, b""])
def test_rows_whose_picture_is_no_file_are_no_training_rows(tmp_path, content):
    folder = tmp_path / "data"
    write_pairs(folder, 20, "t2i", groups=1)
    if content is not None:
        (folder / "none.png").write_bytes(content)
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    bad = [{"query": f"alone {i}", "positive": "none.png" if i else "folder.png"} for i in range(2)]
    (folder / "folder.png").mkdir()
    entry = {"path": write_jsonl(folder / "more.jsonl", [*lines, *bad]), "retrieval_mode": "t2i"}
    with pytest.raises(DataError, match=r"the 20 rows share .* in 1 connected part"):
        split_validation(_load(entry), 0.05, seed=0)


def test_two_components_of_one_data_set_are_split_off(tmp_path):
    """One of each set would be two sets of one kind each."""
    write_pairs(tmp_path / "a", 10, "t2t")
    write_pairs(tmp_path / "b", 10, "t2t", seed=1000)
    data = _load(*(str(tmp_path / name / "pairs.jsonl") for name in "ab"))
    for seed in range(10):
        split = split_validation(data, 0.05, seed=seed)
        assert [len(one) for one in split.validation] == [2]


def test_a_small_data_set_keeps_half_of_its_rows(tmp_path):
    write_pairs(tmp_path / "a", 400, "t2t")
    write_pairs(tmp_path / "b", 3, "t2t", seed=1000)
    data = _load(*(str(tmp_path / name / "pairs.jsonl") for name in "ab"))
    for seed in range(20):
        assert len(split_validation(data, 0.3, seed=seed).train[1]) >= 2


def test_rows_that_all_hang_together_are_refused_with_the_way_out(tmp_path):
    data = _load(write_pairs(tmp_path, 10, "t2t", groups=1))
    with pytest.raises(DataError, match=r"10 rows .*1 connected part; pass val_data_path, or val_fraction: 0"):
        split_validation(data, 0.05, seed=0)
    with pytest.raises(DataError, match="pass val_data_path"):
        split_validation(_load(write_pairs(tmp_path / "one", 1, "t2t")), 0.5, seed=0)
    with pytest.raises(DataError, match="the 3 rows"):
        split_validation(_load(write_pairs(tmp_path / "three", 3, "t2t")), 0.5, seed=0)


def test_no_fraction_is_no_split(classes):
    split = split_validation(classes, 0, seed=0)
    assert (split.train, split.validation) == (classes, [])


def test_several_data_sets_are_split_together_and_each_keeps_rows(tmp_path):
    write_pairs(tmp_path / "a", 60, "t2t", groups=20)
    write_pairs(tmp_path / "b", 60, "t2t", groups=20, seed=1000)
    write_pairs(tmp_path / "c", 1, "t2t", seed=5000)
    data = _load(*(str(tmp_path / name / "pairs.jsonl") for name in "abc"))
    assert [one.name for one in data] == ["pairs", "pairs_2", "pairs_3"]
    for seed in range(5):
        split = split_validation(data, 0.2, seed=seed)
        assert [one.name for one in split.train] == ["pairs", "pairs_2", "pairs_3"]
        assert [one.name for one in split.validation] == ["pairs", "pairs_2"]
        assert not _groups(split.train) & _groups(split.validation) - {None}
        assert [len(one) for one in split.validation] == [12, 12]


def test_bad_rows_stay_in_train_to_be_reported_there(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(20)]
    data = _load(write_jsonl(tmp_path / "d.jsonl", ["{broken", *rows, "{}"]))
    split = split_validation(data, 0.5, seed=0)
    assert (len(split.train[0]), len(split.validation[0])) == (12, 10)
    assert all(split.validation[0][index].query.text for index in range(10))


def test_a_saved_split_comes_back(classes, tmp_path):
    split = split_validation(classes, 0.1, seed=0)
    save_split(split, tmp_path / "split.json")
    again = load_split(tmp_path / "split.json", classes)
    assert _rows(again.train) == _rows(split.train)
    assert _rows(again.validation) == _rows(split.validation)
    assert again.summary == split.summary
    saved = json.loads((tmp_path / "split.json").read_text())
    assert saved["datasets"]["t2t"]["num_rows"] == 100
    assert (saved["seed"], saved["fraction"], saved["num_components"]) == (0, 0.1, 20)


def test_a_saved_split_of_other_data_is_refused(classes, tmp_path):
    save_split(split_validation(classes, 0.1, seed=0), tmp_path / "split.json")
    other = _load(write_pairs(tmp_path / "other", 99, "t2t"))
    with pytest.raises(DataError, match=r"made of t2t \(100 rows\), but the data now are t2t \(99 rows\)"):
        load_split(tmp_path / "split.json", other)
    past_the_end = '{"datasets": {"t2t": {"num_rows": 100, "validation": [100]}}}'
    for broken in ("{", "[]", '{"datasets": {"t2t": 3}}', past_the_end):
        (tmp_path / "split.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"split\.json.*(damaged|not a saved split)"):
            load_split(tmp_path / "split.json", classes)
