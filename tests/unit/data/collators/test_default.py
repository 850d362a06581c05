"""Batches: equal documents are one column, and the targets say which column belongs to which query."""

import pytest

from tests.pictures import write_jsonl, write_pairs, write_picture
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data import collators
from vembed.data.batches.blocks import BlockLoader
from vembed.data.collators.default import Collator
from vembed.data.dataset import load_datasets
from vembed.data.registry import CollatorRegistry
from vembed.data.settings import DataSettings
from vembed.errors import DataError


def _examples(tmp_path, rows, mode="t2t", **settings):
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    (data,) = load_datasets(path, DataSettings.model_validate({"retrieval_mode": mode, **settings}))
    loader = BlockLoader([data], PlainProcessor(), seed=0, augment=settings.get("augment", "none"))
    return [loader.load_example(data[index], epoch=0) for index in range(len(data))]


def _collate(tmp_path, rows, mode="t2t", **settings):
    return Collator()(_examples(tmp_path, rows, mode, **settings))


def _columns(ragged):
    return [part.tolist() for part in ragged.values.split(ragged.counts.tolist())]


def _texts(rows):
    return [item.text for item in rows.items]


def _inputs(rows):
    """What the processor makes of all rows at once."""
    return PlainProcessor().prepare(rows.items, rows.side)


def test_distinct_pairs_stand_in_order(tmp_path):
    batch = _collate(tmp_path, [{"query": f"q{i}", "positive": f"p{i}"} for i in range(3)])
    assert _texts(batch.queries) == ["q0", "q1", "q2"]
    assert _texts(batch.documents) == ["p0", "p1", "p2"]
    assert (batch.queries.side, batch.documents.side) == ("query", "document")
    assert _columns(batch.targets.positives) == [[0], [1], [2]]
    assert _columns(batch.targets.negatives) == [[], [], []]
    assert batch.targets.query_groups.tolist() == batch.targets.document_groups.tolist() == [-1, -1, -1]
    assert [origin.rsplit(":", 1)[1] for origin in batch.origins] == ["1", "2", "3"]


def test_negatives_of_unequal_number_follow_all_positives(tmp_path):
    rows = [
        {"query": "q0", "positive": "p0", "negatives": ["a", "b"]},
        {"query": "q1", "positive": ["p1", "r1"]},
        {"query": "q2", "positive": "p2", "negatives": "c"},
    ]
    batch = _collate(tmp_path, rows)
    assert _texts(batch.documents) == ["p0", "p1", "r1", "p2", "a", "b", "c"]
    assert _columns(batch.targets.positives) == [[0], [1, 2], [3]]
    assert _columns(batch.targets.negatives) == [[4, 5], [], [6]]


def test_equal_documents_are_encoded_once(tmp_path):
    rows = [
        {"query": "q0", "positive": "same", "negatives": ["n", "other"]},
        {"query": "q1", "positive": ["same", "same"], "negatives": ["n", "n"]},
        {"query": "q2", "positive": "other"},
    ]
    batch = _collate(tmp_path, rows)
    assert _texts(batch.documents) == ["same", "other", "n"]
    assert _columns(batch.targets.positives) == [[0], [0], [1]]
    assert _columns(batch.targets.negatives) == [[1, 2], [2], []]
    assert len(set(batch.targets.document_hashes.tolist())) == 3
    assert batch.documents.num_rows == 3


def test_equal_pictures_at_two_paths_are_one_document(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, seed=1)
    write_picture(tmp_path / "c.png", seed=2)
    rows = [{"query": f"q{i}", "positive": name} for i, name in enumerate(("a.png", "b.png", "c.png"))]
    batch = _collate(tmp_path, rows, "t2i")
    assert _columns(batch.targets.positives) == [[0], [0], [1]]
    assert _inputs(batch.documents).tensors["pixel_values"].values.shape == (2, 3, 8, 8)


def test_different_draws_of_one_picture_are_different_columns_with_one_key(tmp_path):
    write_picture(tmp_path / "a.png", seed=1)
    rows = [{"query": f"q{i}", "positive": "a.png"} for i in range(2)]
    batch = _collate(tmp_path, rows, "t2i", augment="strong")
    assert _columns(batch.targets.positives) == [[0], [1]]
    assert len(set(batch.targets.document_hashes.tolist())) == 1
    pixels = _inputs(batch.documents).tensors["pixel_values"].values
    assert not pixels[0].equal(pixels[1])


def test_groups_belong_to_positives_and_to_negatives_only_if_they_are_a_positive_too(tmp_path):
    rows = [
        {"query": "q0", "positive": "p0", "group": "x", "negatives": ["p1", "n"]},
        {"query": "q1", "positive": "p1", "group": "y"},
        {"query": "q2", "positive": "p2"},
    ]
    targets = _collate(tmp_path, rows).targets
    x, y = targets.query_groups.tolist()[:2]
    assert x != y
    assert targets.query_groups.tolist() == [x, y, -1]
    assert targets.document_groups.tolist() == [x, y, -1, -1]  # p0, p1, p2, n


def test_a_document_has_the_group_of_any_row_that_it_is_a_positive_of(tmp_path):
    rows = [{"query": "q0", "positive": "same"}, {"query": "q1", "positive": "same", "group": "x"}]
    targets = _collate(tmp_path, rows).targets
    assert targets.document_groups.tolist() == targets.query_groups.tolist()[1:]


def test_a_document_of_two_groups_is_a_positive_for_the_siblings_in_both(tmp_path):
    rows = [
        {"query": "q0", "positive": "both", "group": "x"},
        {"query": "q1", "positive": "both", "group": "y"},
        {"query": "q2", "positive": "p2", "group": "x"},
        {"query": "q3", "positive": "p3", "group": "y"},
        {"query": "q4", "positive": "p4", "group": "y", "negatives": ["both"]},
    ]
    targets = _collate(tmp_path, rows).targets
    assert targets.document_groups[0] == targets.query_groups[0]
    assert _columns(targets.positives) == [[0], [0], [0, 1], [0, 2], [3]]


def test_hashes_of_queries_and_documents_are_comparable(tmp_path):
    write_pairs(tmp_path, 2, "i2i")
    rows = [{"query": "query_0.png", "positive": "query_1.png"}, {"query": "query_1.png", "positive": "positive_1.png"}]
    targets = _collate(tmp_path, rows, "i2i").targets
    assert targets.query_hashes[1] == targets.document_hashes[0]
    assert targets.query_hashes[0] not in targets.document_hashes


def test_a_rows_negative_that_equals_its_positive_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:1: negatives\[1\]"):
        _collate(tmp_path, [{"query": "q", "positive": "same", "negatives": ["n", "same"]}])


def test_an_empty_batch_is_refused():
    with pytest.raises(DataError, match="at least one row"):
        Collator()([])


def test_text_picture_and_both_stand_in_one_batch(tmp_path):
    write_picture(tmp_path / "a.png", seed=1)
    both = {"text": "words", "image": "a.png"}
    rows = [{"query": "q0", "positive": both}, {"query": "q1", "positive": {"text": "w", "image": ["a.png", "a.png"]}}]
    batch = _collate(tmp_path, rows, "t2m")
    assert _inputs(batch.documents).tensors["pixel_values"].counts.tolist() == [1, 2]
    assert _inputs(batch.documents).tensors["input_ids"].counts.tolist() == [1, 1]
    assert _inputs(batch.queries).tensors["pixel_values"].counts.tolist() == [0, 0]


def test_few_negatives_are_drawn_anew_each_epoch(tmp_path):
    rows = [{"query": "q", "positive": "p", "negatives": [f"n{i}" for i in range(8)]}]
    examples = _examples(tmp_path, rows)
    collate = Collator(num_hard_negatives=2, seed=0)
    drawn = [tuple(_texts(collate(examples, epoch=epoch).documents)[1:]) for epoch in range(8)]
    assert all(len(one) == 2 for one in drawn)
    assert len(set(drawn)) > 3
    assert tuple(_texts(collate(examples, epoch=3).documents)[1:]) == drawn[3]


def test_the_collator_is_found_by_name_under_both_of_the_seeds_paths():
    assert CollatorRegistry is collators.registry.CollatorRegistry
    assert CollatorRegistry.get("default") is Collator
    assert CollatorRegistry.get("qwen3_vl") is Collator  # one collator; families differ in their processors
    assert CollatorRegistry.list() == ["default", "qwen3_vl"]


def test_scores_follow_the_columns_of_their_documents_and_the_negatives_that_are_drawn(tmp_path):
    rows = [
        {"query": "q0", "positive": ["p0", "r0"], "negatives": ["n0", "p1"], "score": [4, 3, 2, 1]},
        {"query": "q1", "positive": "p1", "score": 0.5},
    ]
    targets = _collate(tmp_path, rows).targets
    assert _columns(targets.scored) == [[0, 1, 3, 2], [2]]
    assert _columns(targets.scores) == [[4.0, 3.0, 2.0, 1.0], [0.5]]
    examples = _examples(tmp_path, rows)
    for epoch in range(6):
        drawn = Collator(num_hard_negatives=1, seed=3)(examples, epoch).targets
        (negative,) = _columns(drawn.negatives)[0]
        assert _columns(drawn.scored)[0] == [0, 1, negative]
        assert _columns(drawn.scores)[0] == [4.0, 3.0, 1.0 if negative == _columns(drawn.positives)[1][0] else 2.0]


def test_without_scores_and_ignored_documents_the_targets_have_none(tmp_path):
    targets = _collate(tmp_path, [{"query": "q", "positive": "p"}]).targets
    assert (targets.scored, targets.scores, targets.ignored) == (None, None, None)


def test_ignored_documents_are_known_by_their_content_and_not_encoded(tmp_path):
    rows = [{"query": "q0", "positive": "p0", "ignore": ["p1", "else"]}, {"query": "q1", "positive": "p1"}]
    batch = _collate(tmp_path, rows)
    assert _texts(batch.documents) == ["p0", "p1"]
    ignored = _columns(batch.targets.ignored)
    assert [len(part) for part in ignored] == [2, 0]
    assert ignored[0][0] == batch.targets.document_hashes[1]


def test_the_picture_of_a_composed_query_is_a_negative_of_its_own(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        write_picture(tmp_path / name, seed=seed)
    rows = [
        {"query": {"text": "in red", "image": "a.png"}, "positive": "b.png", "negatives": ["c.png"]},
        {"query": {"text": "as it is", "image": "c.png"}, "positive": "c.png"},
    ]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    (data,) = load_datasets(path, DataSettings.model_validate({"retrieval_mode": "m2i"}))
    loader = BlockLoader([data], PlainProcessor(), seed=0, num_hard_negatives=0, query_image_as_negative=True)
    examples = [loader.load_example(data[index], epoch=0) for index in range(2)]
    batch = Collator(num_hard_negatives=0)(examples)
    assert _columns(batch.targets.positives) == [[0], [1]]
    assert _columns(batch.targets.negatives) == [[2], []]  # the second query's picture is its own positive
    assert batch.documents.num_rows == 3
