"""What is said of a loss that is not finite: the rows and chunks with such embeddings, or the rank that knows them."""

import math

import pytest
import torch

from tests.targets import make_targets
from vembed.errors import NotFiniteError
from vembed.model.modeling import VisualRetrievalModel
from vembed.training.step.chunking import SidePartition
from vembed.training.step.not_finite import MAX_NAMED, LossCheck
from vembed.training.step.ranks import JoinedBatch, join_ranks
from vembed.types import Batch, Embeddings, Inputs, Sides

ROWS, DOCUMENTS = 3, 4
LOWER = "lower the learning rate, or set mixed_precision: no"


@pytest.fixture(scope="module")
def model(clip_folder):
    return VisualRetrievalModel.from_pretrained(clip_folder).model


def batch_of(num_rows=ROWS, num_documents=DOCUMENTS):
    """Row 1 has document 3 as negative."""
    negatives = [[], [num_documents - 1], *[[] for _ in range(num_rows - 2)]]
    targets = make_targets([[row] for row in range(num_rows)], num_documents, negatives=negatives)
    origins = tuple(f"train.jsonl:{row + 1}" for row in range(num_rows))
    return Batch(Inputs(num_rows, {}), Inputs(num_documents, {}), targets, origins)


def check_of(model, batch, *, in_chunks=True, joined=None):
    queries = SidePartition(batch.queries, [[0, 2], [1]] if in_chunks else [range(batch.queries.num_rows)])
    documents = SidePartition(
        batch.documents, [range(2), range(2, 4)] if in_chunks else [range(batch.documents.num_rows)]
    )
    return LossCheck(model, batch, (queries, documents), joined or join_ranks(batch.targets))


def sides(bad_queries=(), bad_documents=(), num_rows=ROWS, num_documents=DOCUMENTS):
    vectors = torch.ones(num_rows, 2), torch.ones(num_documents, 2)
    for side, bad in zip(vectors, (bad_queries, bad_documents), strict=True):
        side[list(bad), 1] = math.nan
    return Sides(*map(Embeddings, vectors))


def told(check, own, gathered=None):
    with pytest.raises(NotFiniteError) as caught:
        check(torch.tensor(math.inf), own, gathered or own)
    return str(caught.value)


def test_a_finite_loss_passes_whatever_the_embeddings_are(model):
    own = sides([0], [1])
    check_of(model, batch_of())(torch.tensor(0.5), own, own)


@pytest.mark.parametrize(
    ("queries", "documents", "words"),
    [
        ([1], [], "train.jsonl:2 are not (chunk 2 of 2 of the queries)"),
        ([0, 1], [], "train.jsonl:1, train.jsonl:2 are not (chunks 1, 2 of 2 of the queries)"),
        ([], [3], "train.jsonl:2 are not (chunk 2 of 2 of the documents)"),  # its negative
        ([2], [0], "train.jsonl:1, train.jsonl:3 are not (chunk 1 of 2 of the queries, chunk 1 of 2 of the documents)"),
    ],
)
def test_rows_and_chunks_with_embeddings_that_are_not_finite_are_named(model, queries, documents, words):
    message = f"the loss is not finite: the embeddings of {words}; {LOWER}"
    assert told(check_of(model, batch_of()), sides(queries, documents)) == message


def test_of_the_plain_step_no_chunks_are_named_and_a_few_rows_alone(model):
    num_rows = MAX_NAMED + 3
    check = check_of(model, batch_of(num_rows, num_rows), in_chunks=False)
    message = told(check, sides(range(num_rows), [], num_rows, num_rows))
    assert message.endswith(f"train.jsonl:{MAX_NAMED} and 3 more are not; {LOWER}")


def test_a_document_that_no_row_names_is_told_of_without_a_row(model):
    batch = batch_of(2, DOCUMENTS)
    own = sides([], [2], num_rows=2)
    assert "the embeddings of some rows are not;" in told(check_of(model, batch, in_chunks=False), own)


def test_padding_does_not_count(model):
    tokens = torch.ones(ROWS, 3, 2)
    tokens[0, 2] = tokens[1, 1] = math.nan
    mask = torch.tensor([[True, True, False]] * ROWS)
    own = Sides(Embeddings(tokens, mask), sides().documents)
    assert "the embeddings of train.jsonl:2 are not" in told(check_of(model, batch_of()), own)


def test_another_rank_is_named_where_its_embeddings_are_not_finite(model):
    """Two ranks with 3 queries and 4 documents each."""
    joined = JoinedBatch(make_targets([[0]] * 6, 8), (3, 3), (4, 4))
    check = check_of(model, batch_of(), joined=joined)
    gathered = sides([], [5], num_rows=6, num_documents=8)
    assert told(check, sides(), gathered) == (
        f"the loss is not finite: embeddings of rank 1 are not, which names the rows; {LOWER}"
    )
    both = sides([0], [5], num_rows=6, num_documents=8)
    assert "embeddings of ranks 0, 1 are not" in told(check, sides(), both)


def test_where_all_embeddings_are_finite_the_scale_is_suspected_and_broken_weights_are_named(clip_folder):
    model = VisualRetrievalModel.from_pretrained(clip_folder).model
    check = check_of(model, batch_of())
    suspected = "the loss is not finite though all embeddings are (temperature or bias out of range?)"
    assert told(check, sides()) == f"{suspected}; {LOWER}"
    model.logit_scale.data.fill_(math.nan)
    assert told(check, sides()) == (
        f"{suspected}; the model's weights are not finite either, such as logit_scale; start from files that are whole"
    )
