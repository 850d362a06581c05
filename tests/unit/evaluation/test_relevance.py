"""Rows to queries, gallery and relevance."""

import shutil
from pathlib import PurePath

import numpy as np
import pytest

from tests.pictures import write_jsonl, write_picture
from vembed.data.dataset import load_datasets
from vembed.data.hashing import content_hash
from vembed.data.images import read_image
from vembed.data.settings import DataSettings
from vembed.errors import DataError
from vembed.evaluation.relevance import RetrievalSet, independent_groups, retrieval_set
from vembed.types import RowNeeds


def build(tmp_path, rows, mode="t2t", needs=None, **settings) -> RetrievalSet:
    data = DataSettings(retrieval_mode=mode, **settings)
    (dataset,) = load_datasets(write_jsonl(tmp_path / "rows.jsonl", rows), data, needs=needs)
    return retrieval_set(dataset, data)


def relevant_texts(one: RetrievalSet) -> dict[str, set[str]]:
    parts = np.split(one.relevant.values.numpy(), one.relevant.counts.cumsum(0)[:-1].numpy())
    return {
        str(query.text): {str(one.documents[number].text) for number in part}
        for query, part in zip(one.queries, parts, strict=True)
    }


def excluded_numbers(one: RetrievalSet) -> list[list[int]]:
    parts = np.split(one.excluded.values.numpy(), one.excluded.counts.cumsum(0)[:-1].numpy())
    return [part.tolist() for part in parts]


def test_equal_queries_are_one_query_with_all_their_positives(tmp_path):
    rows = [
        {"query": "cat", "positive": "meow"},
        {"query": "dog", "positive": "woof"},
        {"query": "cat", "positive": ["purr", "hiss"]},
    ]
    one = build(tmp_path, rows)
    assert [query.text for query in one.queries] == ["cat", "dog"]
    assert relevant_texts(one) == {"cat": {"meow", "purr", "hiss"}, "dog": {"woof"}}


def test_the_gallery_holds_every_document_once_negatives_too(tmp_path):
    rows = [
        {"query": "cat", "positive": "meow", "negatives": ["woof", "moo"]},
        {"query": "dog", "positive": "woof", "negatives": ["meow"]},
    ]
    one = build(tmp_path, rows)
    assert [document.text for document in one.documents] == ["meow", "woof", "moo"]
    assert relevant_texts(one) == {"cat": {"meow"}, "dog": {"woof"}}


def test_documents_are_told_apart_by_content_not_by_path(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    write_picture(tmp_path / "b.png", 2)
    rows = [
        {"query": "one", "positive": "a.png"},
        {"query": "two", "positive": "b.png"},
        {"query": "three", "positive": "copy.png"},
    ]
    one = build(tmp_path, rows, "t2i")
    assert len(one.documents) == 2
    assert one.relevant.values.tolist() == [0, 1, 0]


def test_documents_of_the_same_group_are_relevant_unless_they_are_explicit_negatives(tmp_path):
    rows = [
        {"query": "q1", "positive": "p1", "group": "x", "negatives": ["p3"]},
        {"query": "q2", "positive": "p2", "group": "x"},
        {"query": "q3", "positive": "p3", "group": "x"},
        {"query": "q4", "positive": "p4", "group": "y", "negatives": ["p1"]},
    ]
    one = build(tmp_path, rows)
    everything = {"p1", "p2", "p3"}
    assert relevant_texts(one) == {"q1": {"p1", "p2"}, "q2": everything, "q3": everything, "q4": {"p4"}}


def test_an_explicit_positive_beats_an_explicit_negative_of_an_equal_query(tmp_path):
    rows = [{"query": "q", "positive": "p", "negatives": ["n"]}, {"query": "q", "positive": "n"}]
    assert relevant_texts(build(tmp_path, rows)) == {"q": {"p", "n"}}


def test_the_querys_own_content_is_excluded(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [{"query": f"{i}.png", "positive": f"{(i + 1) % 3}.png", "group": "same"} for i in range(3)]
    one = build(tmp_path, rows, "i2i")
    own = [int(np.flatnonzero(one.document_keys == key)[0]) for key in one.query_keys]
    assert excluded_numbers(one) == [[number] for number in own]
    assert one.relevant.counts.tolist() == [2, 2, 2]


def test_queries_whose_only_positive_is_themselves_are_counted_not_measured(tmp_path):
    rows = [{"query": "same", "positive": "same"}, {"query": "cat", "positive": "meow"}]
    one = build(tmp_path, rows)
    assert [query.text for query in one.queries] == ["cat"]
    assert one.num_unmeasured == 1
    assert "same" in [document.text for document in one.documents]


def test_a_set_without_anything_to_find_is_refused(tmp_path):
    with pytest.raises(DataError, match="no document besides itself is relevant to any of the 1 queries"):
        build(tmp_path, [{"query": "same", "positive": "same"}])


def test_bad_rows_raise_by_default(tmp_path):
    rows = [{"query": "a", "positive": "b"}, {"query": "c", "positive": None}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        build(tmp_path, rows)


def test_bad_rows_are_left_out_and_listed_when_skipping(tmp_path):
    write_picture(tmp_path / "good.png", 1)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    rows = [
        {"query": "a", "positive": "good.png"},
        {"query": "b", "positive": "cut.png"},
        {"query": "c", "positive": "missing.png"},
        {"query": "d", "positive": None},
    ]
    one = build(tmp_path, rows, "t2i", on_bad_sample="skip", max_bad_fraction=0.8)
    assert [query.text for query in one.queries] == ["a"]
    assert len(one.documents) == one.num_rows == 1
    assert [problem.origin.rpartition(":")[2] for problem in one.skipped] == ["2", "3", "4"]


def test_too_many_bad_rows_are_refused(tmp_path):
    rows = [{"query": "a", "positive": "b"}, {"query": "c", "positive": None}]
    with pytest.raises(DataError, match="max_bad_fraction"):
        build(tmp_path, rows, on_bad_sample="skip", max_bad_fraction=0.1)


def test_keys_are_content_hashes(tmp_path):
    one = build(tmp_path, [{"query": "a", "positive": "b"}])
    assert one.query_keys.tolist() == [content_hash(one.queries[0])]
    assert one.document_keys.tolist() == [content_hash(one.documents[0])]


def test_queries_of_a_group_are_not_independent(tmp_path):
    rows = [
        {"query": "q1", "positive": "p1", "group": "x"},
        {"query": "q2", "positive": "p2"},
        {"query": "q3", "positive": "p3", "group": "x"},
        {"query": "q4", "positive": "p4", "group": "y"},
        {"query": "q4", "positive": "p5", "group": "x"},
    ]
    one = build(tmp_path, rows)
    assert one.groups.tolist() == [0, 1, 0, 0]
    assert one.num_groups == 2


def test_groups_connect_through_queries():
    assert independent_groups([{1, 2}, {3}, {2, 4}, {4}, {3, 9}, set()]).tolist() == [0, 1, 0, 0, 1, 2]


def composed_rows(folder) -> list[dict[str, object]]:
    """Two pictures, each to be changed to a second and a third; the query's picture is a negative."""
    for number in range(6):
        write_picture(folder / f"{number}.png", number)
    return [
        {
            "query": {"text": f"change to {tone}", "image": f"{base}.png"},
            "positive": f"{base + tone}.png",
            "negatives": [f"{base}.png", f"{base + 3 - tone}.png"],
        }
        for base in (0, 3)
        for tone in (1, 2)
    ]


def test_the_picture_of_a_composed_query_stays_in_the_gallery_unless_it_is_taken_out(tmp_path):
    one = build(tmp_path, composed_rows(tmp_path), "m2i")
    names = [document.images[0].path.rsplit("/", 1)[1] for document in one.documents]
    assert sorted(names) == [f"{number}.png" for number in range(6)]
    assert excluded_numbers(one) == [[], [], [], []]
    out = excluded_numbers(one.without_query_images())
    assert [[names[number] for number in numbers] for numbers in out] == [["0.png"], ["0.png"], ["3.png"], ["3.png"]]
    assert one.holds_query_images


def test_a_query_picture_is_known_by_its_content_and_beside_a_text_too(tmp_path):
    rows = composed_rows(tmp_path)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    for row in rows:
        row["positive"] = {"text": "a title", "image": row["positive"]}
        row["negatives"] = [{"text": "another title", "image": name} for name in row["negatives"]]
    rows[0]["query"]["image"] = "copy.png"
    one = build(tmp_path, rows, "m2m")
    assert one.query_images.counts.tolist() == [1, 1, 1, 1]


def test_a_query_picture_that_is_the_right_answer_is_never_taken_out(tmp_path):
    rows = composed_rows(tmp_path)
    rows[0] = {"query": rows[0]["query"], "positive": "0.png"}
    one = build(tmp_path, rows, "m2i")
    assert one.query_images.counts.tolist() == [0, 1, 1, 1]
    assert one.num_unmeasured == 0


def test_what_is_excluded_already_is_no_query_picture_as_well(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [{"query": f"{i}.png", "positive": f"{(i + 1) % 3}.png"} for i in range(3)]
    one = build(tmp_path, rows, "i2i")
    assert not one.holds_query_images
    assert excluded_numbers(one.without_query_images()) == excluded_numbers(one)


def test_queries_about_one_picture_are_not_independent(tmp_path):
    assert build(tmp_path, composed_rows(tmp_path), "m2i").groups.tolist() == [0, 0, 1, 1]


def test_a_document_that_a_row_scores_0_is_in_the_gallery_and_not_relevant(tmp_path):
    rows = [
        {"query": "cat", "positive": "meow", "score": 1},
        {"query": "cat", "positive": "woof", "score": 0},
        {"query": "dog", "positive": "purr", "score": 0},
    ]
    one = build(tmp_path, rows)
    assert relevant_texts(one) == {"cat": {"meow"}}
    assert [document.text for document in one.documents] == ["meow", "woof", "purr"]
    assert one.num_unmeasured == 1


def test_a_teachers_scores_say_nothing_of_relevance(tmp_path):
    rows = [
        {"query": "cat", "positive": ["meow", "purr"], "negatives": ["woof"], "score": [-0.5, 3, 1]},
        {"query": "dog", "positive": "woof", "score": 0},
    ]
    one = build(tmp_path, rows, needs=RowNeeds(scores_say_relevance=False))
    assert relevant_texts(one) == {"cat": {"meow", "purr"}, "dog": {"woof"}}
    assert one.num_unmeasured == 0


def test_a_document_that_cannot_be_read_is_left_out_beside_others(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    rows = [
        {"query": "a", "positive": ["0.png", "cut.png"], "negatives": ["1.png", "gone.png"]},
        {"query": "b", "positive": ["cut.png"]},
        {"query": "c", "positive": "2.png"},
    ]
    one = build(tmp_path, rows, "t2i", on_bad_sample="skip", max_bad_fraction=0.7)
    assert [query.text for query in one.queries] == ["a", "c"]
    assert len(one.documents) == 3
    assert one.num_rows == 2
    assert [row.origin.rpartition(":")[2] for row in one.skipped] == ["2"]
    assert [row.origin.rpartition(":")[2] for row in one.left_out] == ["1", "1"]
    with pytest.raises(DataError, match="2 of 3 rows cannot be used, or not with all of their documents"):
        build(tmp_path, rows, "t2i", on_bad_sample="skip", max_bad_fraction=0.5)


def test_what_the_model_cannot_read_is_left_out_too(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [{"query": "a", "positive": ["0.png", "1.png"]}, {"query": "b", "positive": "1.png"}]
    data = DataSettings(retrieval_mode="t2i", on_bad_sample="skip", max_bad_fraction=1)
    (dataset,) = load_datasets(write_jsonl(tmp_path / "rows.jsonl", rows), data)

    def read(item):
        if any("1.png" in str(source.path) for source in item.images):
            raise DataError(f"{item.images[0].path}: too wide for this model")

    one = retrieval_set(dataset, data, read)
    assert [query.text for query in one.queries] == ["a"]
    assert (len(one.skipped), len(one.left_out), len(one.documents)) == (1, 1, 1)


def test_what_many_rows_name_is_read_once_and_what_is_broken_is_told_of_each(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", number)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    shared = ["0.png", "copy.png", "1.png", "cut.png"]
    rows = [{"query": f"{number % 3}.png", "positive": ["3.png"], "negatives": shared} for number in range(12)]
    data = DataSettings(retrieval_mode="i2i", on_bad_sample="skip", max_bad_fraction=1)
    (dataset,) = load_datasets(write_jsonl(tmp_path / "rows.jsonl", rows), data)
    opened = []

    def read(item):
        opened.append(PurePath(str(item.images[0].path)).name)
        read_image(item.images[0], max_pixels=10**6)

    one = retrieval_set(dataset, data, read)
    assert sorted(name for name in opened if name != "cut.png") == ["0.png", "1.png", "2.png", "3.png"]
    assert [row.origin.rsplit(":", 1)[1] for row in one.left_out] == [str(number) for number in range(1, 13)]
    assert all(f"{row.origin}: " in row.reason for row in one.left_out)
    assert len(one.documents) == 3
