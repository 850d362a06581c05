"""Which rows hang together."""

import numpy as np
import pytest

from tests.pictures import write_jsonl, write_pairs, write_picture
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.splits.components import find_components
from vembed.types import RowNeeds


def _labels(tmp_path, *sets):
    """The component of every row, numbered by first appearance; each set is (mode, rows)."""
    entries = [
        {"path": write_jsonl(tmp_path / f"{number}.jsonl", rows), "retrieval_mode": mode, "name": str(number)}
        for number, (mode, rows) in enumerate(sets)
    ]
    settings = DataSettings.model_validate({"data_path": entries})
    components = find_components(load_datasets(settings.data_path, settings))
    assert set(components.labels.tolist()) - {-1} == set(range(len(components.keys)))
    numbers: dict[int, int] = {}
    return [label if label < 0 else numbers.setdefault(label, len(numbers)) for label in components.labels.tolist()]


def _pairs(*pairs, group=None):
    return [{"query": query, "positive": positive} for query, positive in pairs]


def test_rows_without_anything_in_common_are_apart(tmp_path):
    assert _labels(tmp_path, ("t2t", _pairs(("a", "b"), ("c", "d"), ("e", "f")))) == [0, 1, 2]


def test_equal_texts_connect_on_either_side_and_through_others(tmp_path):
    rows = _pairs(("a", "b"), ("c", "d"), ("b", "x"), ("e", "f"), ("x", "c"))
    assert _labels(tmp_path, ("t2t", rows)) == [0, 0, 0, 1, 0]


def test_groups_connect(tmp_path):
    rows = _pairs(("a", "b"), ("c", "d"), ("e", "f"))
    rows[0]["group"], rows[2]["group"] = "x", "x"
    assert _labels(tmp_path, ("t2t", rows)) == [0, 1, 0]


def test_several_positives_connect_and_negatives_do_not(tmp_path):
    rows = [
        {"query": "a", "positive": ["b", "c"], "negatives": ["z"]},
        {"query": "d", "positive": ["c"]},
        {"query": "e", "positive": ["z"], "negatives": ["b"]},
    ]
    assert _labels(tmp_path, ("t2t", rows)) == [0, 0, 1]


def test_equal_pictures_connect_whatever_their_names(tmp_path):
    for name, seed in (("a.png", 1), ("copy.png", 1), ("b.png", 2)):
        write_picture(tmp_path / name, seed)
    rows = _pairs(("1", "a.png"), ("2", "b.png"), ("3", "copy.png"))
    assert _labels(tmp_path, ("t2i", rows)) == [0, 1, 0]


def test_data_sets_are_connected_with_each_other(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", number)
    first = ("t2i", _pairs(("a", "0.png"), ("b", "1.png")))
    second = ("i2i", _pairs(("2.png", "1.png"), ("2.png", "3.png")))
    third = ("t2t", _pairs(("a", "x"), ("y", "z")))
    assert _labels(tmp_path, first, second, third) == [0, 1, 1, 1, 0, 2]


def test_a_composed_text_does_not_connect_but_its_picture_does(tmp_path):
    for number in range(6):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [
        {"query": {"text": "in red", "image": f"{image}.png"}, "positive": positive}
        for image, positive in ((0, "3.png"), (1, "4.png"), (0, "5.png"))
    ]
    assert _labels(tmp_path, ("m2i", rows)) == [0, 1, 0]


def test_a_text_is_not_a_picture_or_a_group_of_the_same_name(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    rows = [{"query": "a.png", "positive": "x", "group": "y"}, {"query": "y", "positive": "z"}]
    assert _labels(tmp_path, ("t2t", rows), ("t2i", _pairs(("q", "a.png")))) == [0, 1, 2]


def test_rows_that_cannot_be_read_belong_nowhere(tmp_path):
    assert _labels(tmp_path, ("t2t", ["{broken", *_pairs(("a", "b"), ("a", "")), *_pairs(("a", "c"))])) == [
        -1,
        0,
        -1,
        0,
    ]


def test_keys_do_not_depend_on_the_order_of_rows(tmp_path):
    path = write_pairs(tmp_path / "x", 20, "t2t", groups=7)
    lines = (tmp_path / "x" / "pairs.jsonl").read_text().splitlines()
    other = write_jsonl(tmp_path / "y.jsonl", lines[::-1])
    keys = []
    for source in (path, other):
        settings = DataSettings.model_validate({"retrieval_mode": "t2t"})
        keys.append(find_components(load_datasets(source, settings)).keys)
    assert len(keys[0]) == 7
    assert np.array_equal(np.sort(keys[0]), np.sort(keys[1]))


@pytest.mark.parametrize("seed", range(3))
def test_components_equal_those_of_a_naive_search(tmp_path, seed):
    draw = np.random.default_rng(seed)
    rows = _pairs(*((f"q{a}", f"q{b}") for a, b in draw.integers(0, 60, (40, 2))))
    texts = [{row["query"], row["positive"]} for row in rows]
    expected = list(range(40))
    for _ in range(40):
        for one in range(40):
            for other in range(40):
                if texts[one] & texts[other]:
                    expected[one] = expected[other] = min(expected[one], expected[other])
    numbers: dict[int, int] = {}
    assert _labels(tmp_path, ("t2t", rows)) == [numbers.setdefault(label, len(numbers)) for label in expected]


def test_a_document_without_a_file_costs_itself_alone(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "empty.png").write_bytes(b"")
    rows = [
        {"query": "a", "positive": ["0.png", "gone.png"]},
        {"query": "b", "positive": ["0.png"]},
        {"query": "c", "positive": ["empty.png", "1.png"], "negatives": ["gone.png"]},
        {"query": "d", "positive": ["1.png"]},
        {"query": "b", "positive": ["gone.png"]},  # no positive is left
        {"query": "e", "positive": ["2.png", "gone.png"], "group": "g"},
        {"query": "f", "positive": ["3.png"], "group": "g"},
    ]
    assert _labels(tmp_path, ("t2i", rows)) == [0, 0, 1, 1, -1, 2, 2]


def test_a_query_without_a_file_costs_its_row(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = _pairs(("gone.png", "0.png"), ("1.png", "0.png"), ("2.png", "0.png"))
    assert _labels(tmp_path, ("i2i", rows)) == [-1, 0, 0]


def test_a_row_needs_the_negatives_of_its_loss(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [
        {"query": "a", "positive": ["0.png"], "negatives": ["gone.png"]},
        {"query": "b", "positive": ["0.png"], "negatives": ["gone.png", "1.png"]},
        {"query": "c", "positive": ["2.png"], "negatives": ["1.png"]},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = DataSettings(retrieval_mode="t2i")
    for needs, expected in ((RowNeeds(), [0, 0, 1]), (RowNeeds(negatives=True), [-1, 0, 1])):
        labels = find_components(load_datasets(path, settings, needs=needs)).labels
        assert [label < 0 for label in labels] == [label < 0 for label in expected]
        assert labels[1] != labels[2]
        assert (labels[0] == labels[1]) == (expected[0] == expected[1])
