"""A teacher's embeddings that rows bring: one per query and document, of one width, or an error that says where."""

import numpy as np
import pytest

from tests.pictures import write_csv, write_jsonl
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data.batches.blocks import BlockLoader
from vembed.data.collators.default import Collator
from vembed.data.dataset import load_datasets
from vembed.data.records import RowReader
from vembed.data.settings import DataSettings
from vembed.data.validation import check_dataset
from vembed.errors import DataError
from vembed.types import RowNeeds

NEEDS = RowNeeds(embeddings=True)
ROW = {"query": "q", "positive": "p", "query_embedding": [1, 0], "positive_embeddings": [[0, 1]]}


def read(**changes):
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    return RowReader("t2t", needs=NEEDS)(row, "x.jsonl:3").embeddings


@pytest.mark.parametrize(
    ("changes", "documents"),
    [
        ({}, [[0, 1]]),
        ({"positive_embeddings": [0, 1]}, [[0, 1]]),
        ({"positive_embeddings": "[0, 1]"}, [[0, 1]]),
        ({"positive_embeddings": np.array([0, 1.0])}, [[0, 1]]),
        ({"positive": ["p", "r"], "positive_embeddings": [[0, 1], [2, 3]]}, [[0, 1], [2, 3]]),
        ({"negatives": ["n", "m"], "negative_embeddings": [[4, 5], [6, 7]]}, [[0, 1], [4, 5], [6, 7]]),
        ({"negatives": ["n"], "negative_embeddings": [4, 5]}, [[0, 1], [4, 5]]),
    ],
)
def test_there_is_one_for_everything_in_the_row(changes, documents):
    embeddings = read(**changes)
    assert embeddings.query.tolist() == [1, 0]
    assert embeddings.documents.tolist() == documents
    assert embeddings.query.dtype == embeddings.documents.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_embedding": None}, "query_embedding: is missing; teacher_embeddings: true goes by"),
        ({"positive_embeddings": []}, "positive_embeddings: is missing"),
        ({"negatives": ["n"]}, "negative_embeddings: is missing"),
        ({"query_embedding": [[1, 0], [0, 1]]}, "query_embedding: has 2 embeddings for 1 items; give one each"),
        ({"positive": ["p", "r"]}, "positive_embeddings: has 1 embeddings for 2 items"),
        ({"query_embedding": [1, float("nan")]}, "query_embedding: holds NaN or infinite numbers"),
        ({"query_embedding": [1, 1e300]}, "query_embedding: holds NaN or infinite numbers"),
        ({"query_embedding": [1, 10**400]}, "query_embedding: holds NaN or infinite numbers"),
        ({"positive_embeddings": [[1, -(10**400)]]}, "positive_embeddings: holds NaN or infinite numbers"),
        (
            {"query_embedding": "[1, " + "7" * 5000 + "]"},
            "query_embedding: should be a list of numbers, but is no JSON",
        ),
        ({"query_embedding": "[" * 100_000}, "query_embedding: should be a list of numbers, but is"),
        (
            {"query_embedding": [True, False]},
            "query_embedding: should be a list of numbers.*without truth values in it",
        ),
        ({"query_embedding": [1, True]}, "query_embedding: should be a list of numbers.*without truth values in it"),
        ({"query_embedding": np.array([True])}, "query_embedding: should be .*without truth values in it"),
        ({"positive_embeddings": [["1", "2"]]}, "positive_embeddings: should be .*without texts in it"),
        ({"query_embedding": [1, None]}, "query_embedding: should be .*without nulls in it"),
        ({"query_embedding": [b"1", 2]}, "query_embedding: should be .*without bytes in it"),
        ({"positive_embeddings": [[[[[[1]]]]]]}, "positive_embeddings: an embedding is a list of numbers"),
        ({"query_embedding": [1, 0, 0]}, r"query_embedding: the row's embeddings are of several widths: \[2, 3\]"),
        ({"query_embedding": 1.0}, r"query_embedding: should be a list of numbers, but is a number \(1.0\)"),
        ({"query_embedding": "red"}, r"query_embedding: should be a list of numbers, but is a text \('red'\)"),
        ({"query_embedding": ["a", "b"]}, "query_embedding: should be a list of numbers, or a list of such lists"),
        ({"positive_embeddings": [[[0, 1]]]}, "positive_embeddings: an embedding is a list of numbers.*not 1 x 1 x 2"),
        (
            {"positive": ["p", "r"], "positive_embeddings": [[0, 1], [1]]},
            "positive_embeddings: should be a list of numbers, or a list of such lists of one length",
        ),
    ],
)
def test_what_is_wrong_names_the_row_and_the_field(changes, words):
    with pytest.raises(DataError, match=rf"x.jsonl:3: {words}"):
        read(**changes)


def test_they_are_not_read_unless_asked_for():
    assert RowReader("t2t")({**ROW, "query_embedding": "nonsense"}, "x:1").embeddings is None


def test_a_column_of_another_name_is_mapped():
    reader = RowReader("t2t", {"query_embedding": "vector"}, needs=NEEDS)
    row = {**ROW, "vector": [3, 4], "query_embedding": None}
    assert reader(row, "x:1").embeddings.query.tolist() == [3, 4]
    with pytest.raises(DataError, match=r"query_embedding \(column 'vector'\): is missing"):
        reader(ROW, "x:1")


def test_a_csv_holds_them_as_text(tmp_path):
    row = {"query": "q", "positive": "p", "query_embedding": "[1, 2]", "positive_embeddings": "[[3, 4]]"}
    (data,) = load_datasets(write_csv(tmp_path / "d.csv", [row]), DataSettings(retrieval_mode="t2t"), needs=NEEDS)
    assert data[0].embeddings.documents.tolist() == [[3, 4]]


def examples(tmp_path, rows, **options):
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    (data,) = load_datasets(path, DataSettings(retrieval_mode="t2t"), needs=NEEDS)
    loader = BlockLoader([data], PlainProcessor(), seed=0, **options)
    return data, [loader.load_example(data[index], epoch=0) for index in range(len(data))]


def row(query, vector, positives, negatives):
    """Every text's embedding begins with its number in the alphabet."""

    def embed(texts):
        return [[ord(text) - ord("a"), 0.5] for text in texts]

    return {
        "query": query,
        "query_embedding": vector,
        "positive": list(positives),
        "positive_embeddings": embed(positives),
        "negatives": list(negatives),
        "negative_embeddings": embed(negatives),
    }


def test_a_batch_has_them_in_the_order_of_its_columns(tmp_path):
    rows = [row("q", [7, 7], "ab", "cd"), row("r", [8, 8], "b", "ea"), row("s", [9, 9], "f", "")]
    _, loaded = examples(tmp_path, rows)
    batch = Collator()(loaded)
    assert batch.targets.teacher.queries.vectors.tolist() == [[7, 7], [8, 8], [9, 9]]
    numbers = [ord(item.text) - ord("a") for item in batch.documents.items]
    assert len(numbers) == 6
    assert batch.targets.teacher.documents.vectors[:, 0].tolist() == numbers


def test_chosen_negatives_keep_theirs(tmp_path):
    _, loaded = examples(tmp_path, [row("q", [7, 7], "ab", "cdefg")], num_hard_negatives=2)
    (example,) = loaded
    texts = [item.text for item in (*example.positives, *example.negatives)]
    assert len(texts) == 4
    assert example.embeddings.documents[:, 0].tolist() == [ord(text) - ord("a") for text in texts]


def test_of_equal_documents_the_first_row_says_it(tmp_path):
    second = {**row("r", [8, 8], "a", ""), "positive_embeddings": [[99, 99]]}
    _, loaded = examples(tmp_path, [row("q", [7, 7], "a", ""), second])
    assert Collator()(loaded).targets.teacher.documents.vectors.tolist() == [[0, 0.5]]


def test_rows_of_several_widths_are_refused(tmp_path):
    other = {**ROW, "query": "r", "query_embedding": [1, 2, 3], "positive_embeddings": [1, 2, 3]}
    data, loaded = examples(tmp_path, [ROW, other])
    with pytest.raises(DataError, match=r"d.jsonl:2: its embeddings have 3 numbers, those of the rows before it 2"):
        check_dataset(data, DataSettings())
    with pytest.raises(DataError, match=r"d.jsonl:2: its embeddings have 3 numbers, those of .*d.jsonl:1 2"):
        Collator()(loaded)
