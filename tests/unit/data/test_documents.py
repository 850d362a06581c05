"""One broken picture costs the document that shows it, and the row only where nothing of it is left."""

import json

import numpy as np
import pytest
import torch

from tests.pictures import write_jsonl, write_picture
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data.batches.blocks import Block, BlockLoader
from vembed.data.batches.loader import LoaderState, TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.documents import read_what_can_be
from vembed.data.hashing import content_hash
from vembed.data.settings import DataSettings
from vembed.data.validation import BadRow, BadSamples
from vembed.errors import DataError
from vembed.types import Example, ImageSource, Item, RowNeeds

# Python 3.12 and later warn whenever a process with threads forks; torch has threads, and its workers fork.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    """Pictures 0.png to 9.png, and cut.png."""
    for number in range(10):
        write_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    return tmp_path


def _hash(folder, *names):
    return content_hash(Item(images=tuple(ImageSource(path=str(folder / name)) for name in names)))


def _loaded(folder, row, needs=None, **options):
    settings = DataSettings(on_bad_sample="skip", max_bad_fraction=1)
    (data,) = load_datasets(write_jsonl(folder / "rows.jsonl", [row]), settings, needs=needs)
    loader = BlockLoader([data], PlainProcessor(), seed=0, on_bad_sample="skip", **options)
    return loader.load(Block(0, (0,), 0))[0]


def _hashes(items):
    return [item.content_hash for item in items]


def test_a_broken_positive_beside_others_is_left_out_and_named(folder):
    loaded = _loaded(folder, {"query": "a", "positive": ["1.png", "cut.png", "2.png", "gone.png"]})
    assert _hashes(loaded.positives) == [_hash(folder, "1.png"), _hash(folder, "2.png")]
    assert [reason.partition(str(folder / "rows.jsonl:1"))[2][:14] for reason in loaded.left_out] == [
        ": positive[1]:",
        ": positive[3]:",
    ]
    assert "gone.png: there is no such image file" in loaded.left_out[1]


def test_a_broken_negative_is_left_out_with_its_score_and_embedding(folder):
    row = {
        "query": "a",
        "positive": ["cut.png", "1.png"],
        "negatives": ["2.png", "cut.png", "3.png"],
        "score": [1, 2, 3, 4, 5],
        "query_embedding": [1.0, 0.0],
        "positive_embeddings": [[1.0, 1.0], [2.0, 2.0]],
        "negative_embeddings": [[3.0, 3.0], [4.0, 4.0], [5.0, 5.0]],
    }
    loaded = _loaded(folder, row, RowNeeds(scores="any", embeddings=True))
    assert _hashes(loaded.positives) == [_hash(folder, "1.png")]
    assert _hashes(loaded.negatives) == [_hash(folder, "2.png"), _hash(folder, "3.png")]
    assert loaded.scores == (2, 3, 5)
    assert loaded.embeddings.documents[:, 0].tolist() == [2, 3, 5]
    assert len(loaded.left_out) == 2


def test_another_negative_takes_the_place_of_a_broken_one_that_was_drawn(folder):
    names = [f"{number}.png" for number in range(1, 6)]
    row = {"query": "a", "positive": "0.png", "negatives": [*names, *["cut.png"] * 5]}
    whole = [_hash(folder, name) for name in names]
    for size in (1, 3, 5):
        loaded = _loaded(folder, row, num_hard_negatives=size)
        assert len(set(_hashes(loaded.negatives))) == size
        assert set(_hashes(loaded.negatives)) <= set(whole)
    assert sorted(_hashes(_loaded(folder, row, num_hard_negatives=8).negatives)) == sorted(whole)


@pytest.mark.parametrize(
    ("row", "needs", "place"),
    [
        ({"query": "a", "positive": "cut.png"}, RowNeeds(), "positive"),
        ({"query": "a", "positive": ["cut.png", "gone.png"], "negatives": ["1.png"]}, RowNeeds(), r"positive\[0\]"),
        (
            {"query": "a", "positive": "1.png", "negatives": ["cut.png"]},
            RowNeeds(negatives=True),
            "negatives",
        ),
        ({"query": "a", "positive": "1.png", "negatives": ["cut.png"]}, RowNeeds(num_documents=2), "negatives"),
    ],
)
def test_a_row_of_which_too_little_is_left_is_a_bad_row(folder, row, needs, place):
    loaded = _loaded(folder, row, needs)
    assert isinstance(loaded, BadRow)
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: {place}: "):
        raise DataError(loaded.reason)


def test_a_document_that_lacks_one_of_its_pictures_is_another_document_and_left_out(folder):
    documents = [{"text": "both", "image": ["1.png", "cut.png"]}, {"text": "both", "image": ["1.png", "2.png"]}]
    settings = DataSettings(retrieval_mode="t2m", on_bad_sample="skip", max_bad_fraction=1)
    path = write_jsonl(folder / "rows.jsonl", [{"query": "a", "positive": documents}])
    loader = BlockLoader(load_datasets(path, settings), PlainProcessor(), seed=0, on_bad_sample="skip")
    (loaded,) = loader.load(Block(0, (0,), 0))
    assert [len(item.images) for item in loaded.positives] == [2]
    assert len(loaded.left_out) == 1


def test_a_broken_query_and_a_cell_that_is_no_document_cost_the_row(folder):
    settings = DataSettings(retrieval_mode="i2i", on_bad_sample="skip", max_bad_fraction=1)
    rows = [{"query": "cut.png", "positive": ["1.png"]}, {"query": "1.png", "positive": ["2.png", 7]}]
    data = load_datasets(write_jsonl(folder / "rows.jsonl", rows), settings)
    loaded = BlockLoader(data, PlainProcessor(), seed=0, on_bad_sample="skip").load(Block(0, (0, 1), 0))
    assert [type(row) for row in loaded] == [BadRow, BadRow]


def test_an_ignored_document_that_cannot_be_read_is_left_out(folder):
    row = {"query": "a", "positive": "1.png", "ignore": ["2.png", "gone.png"]}
    loaded = _loaded(folder, row)
    assert loaded.ignored == (_hash(folder, "2.png"),)
    assert len(loaded.left_out) == 1


def test_the_other_documents_keep_their_augmentations(folder):
    """A slot is the document's place in the row, whatever is left out before it."""
    names = ["1.png", "2.png", "3.png"]
    options = {"augment": "strong"}
    plain = _loaded(folder, {"query": "a", "positive": names, "negatives": ["4.png", "5.png"]}, **options)
    row = {"query": "a", "positive": ["1.png", "cut.png", "3.png"], "negatives": ["cut.png", "5.png"]}
    other = _loaded(folder, row, **options)
    pairs = [(plain.positives[0], other.positives[0]), (plain.positives[2], other.positives[1])]
    for one, two in [*pairs, (plain.negatives[1], other.negatives[0])]:
        assert one.draw == two.draw
        assert torch.equal(one.images[0]["pixel_values"], two.images[0]["pixel_values"])


def test_raising_stays_raising(folder):
    data = load_datasets(
        write_jsonl(folder / "rows.jsonl", [{"query": "a", "positive": ["1.png", "cut.png"]}]), DataSettings()
    )
    (loaded,) = BlockLoader(data, PlainProcessor(), seed=0).load(Block(0, (0,), 0))
    assert isinstance(loaded, BadRow)
    assert "positive[1]" in loaded.reason


def test_what_is_read_is_what_the_function_gives_and_nothing_is_read_twice():
    items = [Item(text=str(number)) for number in range(6)]
    example = Example(items[0], tuple(items[1:3]), tuple(items[3:]))
    asked = []

    def read(item, slot):
        asked.append((item.text, slot))
        if item.text in "14":
            raise DataError(f"no {item.text}")
        return item.text

    found = read_what_can_be(example, [0, 1], read, needs=RowNeeds(), others=[2])
    assert (dict(found.positives), dict(found.negatives)) == ({1: "2"}, {0: "3", 2: "5"})
    assert found.left_out == ("no 1", "no 4")
    assert asked == [("1", 1), ("2", 2), ("3", 3), ("4", 4), ("5", 4)]


@pytest.fixture
def source(folder):
    """Twelve rows of four positives and two negatives: a third lack a positive, others a negative, one is bad."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(12):
        names = [f"{place}.png" for place in draw.permutation(10)[:6]]
        if number % 3 == 0:
            names[int(draw.integers(4))] = "cut.png"
        if number % 4 == 1:
            names[4] = "gone.png"
        rows.append({"query": f"text {number}", "positive": names[:4], "negatives": names[4:]})
    rows[7] = {"query": "bad", "positive": ["cut.png"], "negatives": []}
    return write_jsonl(folder / "rows.jsonl", rows)


def _loader(source, run=None, **values):
    settings = DataSettings(**{"on_bad_sample": "skip", "max_bad_fraction": 1, "num_workers": 0, **values})
    bad = BadSamples(settings, run)
    return TrainingLoader(
        load_datasets(source, settings), PlainProcessor(), settings, batch_size=3, seed=0, bad_samples=bad
    )


def _plain(batch):
    hashes = [item.content_hash for side in (batch.queries, batch.documents) for item in side.items]
    pixels = [item.images[0]["pixel_values"].tolist() for item in batch.documents.items]
    positives, negatives = batch.targets.positives, batch.targets.negatives
    columns = [tensor.tolist() for ragged in (positives, negatives) for tensor in (ragged.values, ragged.counts)]
    return batch.origins, hashes, pixels, columns


def test_workers_and_resuming_give_equal_batches_and_places(source, tmp_path):
    values = {"augment": "light", "num_hard_negatives": 1}
    inline, pooled = (_loader(source, tmp_path / f"run{workers}", num_workers=workers, **values) for workers in (0, 2))
    for epoch in (0, 1):
        whole = [(_plain(batch), state.to_dict()) for batch, state in inline.epoch(epoch)]
        assert [(_plain(batch), state.to_dict()) for batch, state in pooled.epoch(epoch)] == whole
        for number in range(len(whole)):
            state = LoaderState.from_dict(json.loads(json.dumps(whole[number][1])))
            rest = [(_plain(batch), state.to_dict()) for batch, state in inline.epoch(epoch, state)]
            assert rest == whole[number + 1 :]
    pooled.close()
    lists = [(tmp_path / name / "bad_samples.jsonl").read_text() for name in ("run0", "run2")]
    assert lists[0] == lists[1]


def test_a_row_without_some_documents_counts_as_used_and_moves_no_row(source, folder):
    """Only the row that is bad as a whole is passed over."""
    origins = [origin for batch, _ in _loader(source).epoch(0) for origin in batch.origins]
    states = [state for _, state in _loader(source).epoch(0)]
    assert states[-1].places == (len(origins) + 1,)
    assert not any(origin.endswith(":8") for origin in origins)


def test_documents_are_listed_once_each_and_their_rows_count(source, tmp_path):
    settings = DataSettings(on_bad_sample="skip", max_bad_fraction=1, num_workers=0)
    for _ in range(2):  # the second run goes on from the list of the first
        bad = BadSamples(settings, tmp_path / "run")
        loader = TrainingLoader(
            load_datasets(source, settings), PlainProcessor(), settings, batch_size=3, seed=0, bad_samples=bad
        )
        for epoch in (0, 1):
            list(loader.epoch(epoch))
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    rows = {int(line["origin"].rpartition(":")[2]) for line in lines}
    assert rows == {1, 2, 4, 6, 7, 8, 10}
    assert len(lines) == 8
    assert [line["origin"].rpartition(":")[2] for line in lines if "left_out" not in line] == ["8"]
    assert bad.num_bad == 7
    with pytest.raises(DataError, match=r"rows cannot be used, or not with all of their documents, over max_bad_fract"):
        list(_loader(source, max_bad_fraction=0.3).epoch(0))
