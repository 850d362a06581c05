"""Scores of a row's documents: read where a loss needs them, with an error that names the line where they are wrong."""

from decimal import Decimal

import pytest

from tests.pictures import write_jsonl
from vembed.data.dataset import load_datasets
from vembed.data.records import RowReader
from vembed.data.settings import DataSettings
from vembed.errors import DataError
from vembed.losses.registry import LossRegistry
from vembed.types import RowNeeds

ORIGIN = "train.jsonl:17"
ANY, BINARY = RowNeeds(scores="any"), RowNeeds(scores="binary")


def read(row, needs=ANY, **options):
    return RowReader("t2t", needs=needs, **options)({"query": "q", "positive": "p", **row}, ORIGIN)


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        ({"score": 0.5}, (0.5,)),
        ({"score": -3}, (-3.0,)),
        ({"score": True}, (1.0,)),
        ({"score": "0.25"}, (0.25,)),
        ({"negatives": ["a", "b"], "score": [2, 1, 0]}, (2.0, 1.0, 0.0)),
        ({"negatives": ["a"], "score": "[2, 1.5]"}, (2.0, 1.5)),
        ({"positive": ["p", "r"], "score": [1, 0.5]}, (1.0, 0.5)),
    ],
)
def test_there_is_a_number_for_each_document(row, scores):
    assert read(row).scores == scores


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "score: is missing; the loss goes by a number for each document of a row"),
        ({"score": None}, "score: is missing"),
        ({"score": float("nan")}, "score: is missing (NaN); the loss"),
        ({"score": float("inf")}, "score: should be a finite number, not inf"),
        ({"score": "high"}, "score: should be a number or a list of numbers, but is a text ('high')"),
        ({"score": [1, "x"]}, "score: has 2 numbers|score: should be a number, but is a text ('x')"),
        ({"score": {"a": 1}}, "score: should be a number, but is a dict"),
        ({"negatives": ["a"], "score": 1}, "score: has 1 numbers for the row's 2 documents; give one each"),
    ],
)
def test_a_score_that_is_wrong_says_where_and_why(row, words):
    with pytest.raises(DataError) as caught:
        read(row)
    assert str(caught.value).startswith(f"{ORIGIN}: ")
    assert any(word in str(caught.value) for word in words.split("|"))


def test_a_row_without_a_teachers_score_says_what_else_can_teach():
    with pytest.raises(DataError, match=r"score: is missing; the loss goes by a teacher's .*has teacher_model_name"):
        read({}, RowNeeds(scores="any", scores_say_relevance=False))


def test_a_mapped_column_is_named():
    with pytest.raises(DataError, match=r"train.jsonl:17: score \(column 'label'\): a label is 0 or 1, not 0.5"):
        read({"label": 0.5}, BINARY, columns={"score": "label"})
    assert read({"label": 0}, BINARY, columns={"score": "label"}).scores == (0.0,)


@pytest.mark.parametrize("cell", [None, "high", [1, 2, 3], float("inf"), {"a": 1}])
def test_without_need_a_column_of_that_name_may_hold_anything(cell):
    assert read({"score": cell}, RowNeeds()).scores == ()


def test_negatives_that_a_loss_needs_are_missed():
    with pytest.raises(DataError, match=r"train.jsonl:17: negatives: is missing; the loss needs explicit negatives"):
        read({}, RowNeeds(negatives=True))
    assert len(read({"negatives": ["n"]}, RowNeeds(negatives=True)).negatives) == 1


def test_ignored_documents_are_of_the_documents_kind():
    example = RowReader("t2i")({"query": "q", "positive": "a.png", "ignore": ["b.png", "c.png"]}, ORIGIN)
    assert [item.images[0].path for item in example.ignored] == ["b.png", "c.png"]
    with pytest.raises(DataError, match=r"train.jsonl:17: ignore\[1\]: the text is empty"):
        read({"ignore": ["a", " "]}, RowNeeds())


def test_needs_hold_for_every_row_of_a_data_set(tmp_path):
    path = write_jsonl(
        tmp_path / "d.jsonl", [{"query": "q", "positive": "p", "score": 1}, {"query": "q", "positive": "p"}]
    )
    (data,) = load_datasets(path, DataSettings.model_validate({"retrieval_mode": "t2t"}), needs=ANY)
    assert data[0].scores == (1.0,)
    with pytest.raises(DataError, match=r"d.jsonl:2: score: is missing"):
        data[1]


def test_a_positive_that_its_score_calls_irrelevant_is_refused_where_no_loss_would_read_it():
    unread = RowNeeds(scores="unread")
    with pytest.raises(DataError, match=r"train\.jsonl:17: score: 0 says that the positive is not relevant.*cosent"):
        read({"score": 0}, unread)
    with pytest.raises(DataError, match="-1 says"):
        read({"positive": ["p", "r"], "score": [1, -1]}, unread)
    assert read({"score": 0.5}, unread).positives
    assert read({"negatives": ["n"], "score": [1, 0]}, unread).negatives
    assert read({"score": 0}, RowNeeds()).scores == (0.0,)


def test_losses_that_read_no_scores_say_so():
    reading = {
        name: LossRegistry.get(name).needs(LossRegistry.get(name).settings()).scores for name in LossRegistry.list()
    }
    assert {name for name, scores in reading.items() if scores != "unread"} == {"cosent", "contrastive", "margin_mse"}


@pytest.mark.parametrize("needs", [RowNeeds(scores="unread"), ANY, BINARY])
@pytest.mark.parametrize("score", [10**400, -(10**400), [10**400], float("-inf"), Decimal("1e999")])
def test_a_number_that_is_not_finite_is_refused_by_losses_that_read_it_and_that_do_not(needs, score):
    with pytest.raises(DataError, match=rf"^{ORIGIN}: score: should be a finite number, not "):
        read({"score": score}, needs)


@pytest.mark.parametrize("score", ["7" * 5000, "[" * 100_000, "[1, " + "7" * 5000 + "]"])
def test_a_text_that_writes_no_number_that_can_be_read_is_refused(score):
    with pytest.raises(DataError, match=rf"^{ORIGIN}: score: should be a number or a list of numbers, but is"):
        read({"score": score})
    with pytest.raises(DataError, match=r"should be .*; this loss_type reads no scores"):
        read({"score": score}, RowNeeds(scores="unread"))


def test_without_need_a_number_beyond_a_float_is_passed_over():
    assert read({"score": 10**400}, RowNeeds()).scores == ()


@pytest.mark.parametrize("score", [0, -0.5, [0], [0, 1, 1], "0", "[0.0]", False, Decimal("0")])
@pytest.mark.parametrize("needs", [RowNeeds(scores="unread"), RowNeeds()])
def test_a_positive_that_is_called_irrelevant_is_refused_whatever_the_number_of_scores(score, needs):
    with pytest.raises(DataError, match=rf"^{ORIGIN}: score: "):
        read({"negatives": ["n"], "score": score}, needs)
    assert read({"negatives": ["n"], "score": [1]}, needs).scores == ()
    assert read({"negatives": ["n"], "score": score}, RowNeeds(scores_say_relevance=False)).scores == ()


def test_the_second_of_several_positives_may_be_the_one():
    with pytest.raises(DataError, match=r"score: 0 says that the positive is not relevant"):
        read({"positive": ["p", "r"], "negatives": ["n"], "score": [1, 0]}, RowNeeds(scores="unread"))


@pytest.mark.parametrize("word", ["False", "FALSE", " false ", "[False]", "0.0", "[0]"])
def test_a_truth_value_of_a_file_of_texts_is_0_or_1(word):
    unread = RowNeeds(scores="unread")
    with pytest.raises(DataError, match=r"score: 0 says that the positive is not relevant"):
        read({"score": word}, unread, lists_in_text=True)
    assert read({"score": word}, BINARY, lists_in_text=True).scores == (0.0,)
    assert read({"score": word}, RowNeeds(), lists_in_text=True).scores == (0.0,)
    assert read({"score": "True"}, unread, lists_in_text=True).scores == (1.0,)
    assert read({"negatives": ["n"], "score": "[True, False]"}, BINARY, lists_in_text=True).scores == (1.0, 0.0)


@pytest.mark.parametrize("cell", ["0,0", "1,5", "no", {"a": 1}, [1, None], ["1,0"]])
@pytest.mark.parametrize("lists_in_text", [True, False])
def test_a_score_that_is_no_number_is_refused_where_it_could_say_irrelevant(cell, lists_in_text):
    with pytest.raises(DataError, match=r"score: should be .*; this loss_type reads no scores, but a score may say"):
        read({"score": cell}, RowNeeds(scores="unread"), lists_in_text=lists_in_text)
    for needs in (RowNeeds(scores="unread"), RowNeeds()):
        with pytest.raises(DataError, match=r"score \(column 'label'\): should be"):
            read({"label": cell}, needs, columns={"score": "label"}, lists_in_text=lists_in_text)


@pytest.mark.parametrize("text", ["0,0", " -1,5 ", "1.000,0"])
def test_in_evaluation_a_decimal_comma_is_told_from_a_column_of_words(text):
    with pytest.raises(DataError, match="score: should be a number or a list of numbers, but is a text"):
        read({"score": text}, RowNeeds())


def test_an_empty_list_of_a_file_of_texts_says_nothing():
    assert read({"score": "[]"}, RowNeeds(), lists_in_text=True).scores == ()
    assert read({"score": "[]"}, RowNeeds(scores="unread"), lists_in_text=True).scores == ()
