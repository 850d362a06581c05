"""`auto` in the gradient cache: what memory holds is found once, and nothing else changes."""

import json
import logging
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.pictures import write_pairs
from vembed.data.batches.loader import TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.settings import LossSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.step import auto_chunking
from vembed.training.step.chunking import Chunking, chunk_batch
from vembed.training.step.memory import WORKING_SHARE, graph_size, row_sizes, trainable_bytes
from vembed.training.step.memory_fit import StepParts
from vembed.types import ItemRows
from vembed.utils.memory import GIB

ROWS = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs(clip_folder, tmp_path_factory):
    """A function that gives the model with these settings, and a batch of all rows."""
    path = write_pairs(tmp_path_factory.mktemp("pairs"), ROWS, "t2i")
    data = DataSettings(data_path=path)

    def load(**settings):
        model = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(**settings))
        datasets = load_datasets(path, data)
        return model, next(TrainingLoader(datasets, model.processor, data, batch_size=ROWS, seed=0).epoch(0))[0]

    return load


def trainer_of(model, **settings):
    objective = LossFactory.create(LossSettings())
    return GradientCacheTrainer(model.model, model.processor, objective, GradCacheSettings(**settings))


def encode_of(model):
    prepare, finish = model.processor.prepare, model.processor.finish
    return lambda chunk: model.model(finish(prepare(chunk.items, chunk.side)))


def with_room_for_five_rows(model):
    """What runs out of memory over five rows, and the list of how many it was asked for."""
    tried = []

    def encode(chunk):
        tried.append(chunk.num_rows)
        if chunk.num_rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_of(model)(chunk)

    return encode, tried


def parts_of(model, batch, encode):
    return StepParts(model.model, model.processor, encode, (batch.queries, batch.documents), CPU)


def gib_for(model, batch, rows):
    """Room for the gradients, the moments and the graph of so many pictures, the larger side here."""
    graph = graph_size(model.model, encode_of(model), batch.documents).of(rows)
    assert graph > graph_size(model.model, encode_of(model), batch.queries).of(rows)
    return (4 * trainable_bytes(model.model) + (1 + WORKING_SHARE) * graph + 1024) / GIB


def test_auto_takes_the_whole_batch_where_it_fits_and_says_that_this_is_the_plain_step(pairs, caplog):
    model, batch = pairs()
    caplog.set_level(logging.INFO, "vembed")
    trainer = trainer_of(model, gradient_cache_chunk_size="auto")
    for _ in range(2):
        trainer.step(batch)
    assert trainer.find_chunking(batch).chunk_size == ROWS
    sized, plain = caplog.messages
    assert sized.startswith("gradient_cache_chunk_size: auto is 12 rows here")
    assert plain == "a batch of 12 rows is one chunk: the plain step, no second forward"


@pytest.mark.parametrize(("rows", "chosen"), [(1, 1), (3, 3), (5, 4), (6, 6), (11, 6)])
def test_auto_takes_the_most_rows_that_fit_in_chunks_of_one_size(pairs, rows, chosen):
    model, batch = pairs()
    memory = gib_for(model, batch, rows)
    trainer = trainer_of(model, gradient_cache_chunk_size="auto", gradient_cache_memory_gib=memory)
    assert trainer.find_chunking(batch).chunk_size == chosen


def test_weights_of_classes_leave_less_room(pairs):
    model, batch = pairs()
    memory = gib_for(model, batch, 6)
    chosen = []
    for classes in (2, 4000):
        settings = GradCacheSettings(gradient_cache_chunk_size="auto", gradient_cache_memory_gib=memory)
        objective = LossFactory.create(LossSettings(loss_type="arcface"), classes=range(classes), dim=model.model.dim)
        trainer = GradientCacheTrainer(model.model, model.processor, objective, settings)
        chosen.append(trainer.find_chunking(batch).chunk_size)
    assert chosen == [6, 1]


def test_where_not_even_a_row_fits_a_warning_says_so(pairs, caplog):
    model, batch = pairs()
    trainer = trainer_of(model, gradient_cache_chunk_size="auto", gradient_cache_memory_gib=1e-6)
    assert trainer.find_chunking(batch).chunk_size == 1
    (warned,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned.endswith("less than a chunk of one row takes")


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        (
            {"gradient_cache_chunk_size": 5},
            "3 chunks of queries and 3 of documents, of up to 5 rows; 1 of these 6 needs",
        ),
        ({"gradient_cache_chunk_tokens": 40, "gradient_cache_retain": 0.5}, "of up to 40 tokens; 6 of these 12 need"),
    ],
)
def test_the_log_says_once_how_a_batch_is_divided(pairs, chunks, words, caplog):
    model, batch = pairs()
    caplog.set_level(logging.INFO, "vembed")
    trainer = trainer_of(model, **chunks)
    for _ in range(2):
        trainer.step(batch)
    (told,) = caplog.messages
    assert words in told


@pytest.mark.parametrize(("rows", "kept"), [(2, 1), (6, 3), (12, 6), (1000, 12)])
def test_auto_keeps_the_graphs_that_fit(pairs, rows, kept, caplog):
    model, batch = pairs()
    caplog.set_level(logging.INFO, "vembed")
    memory = gib_for(model, batch, rows)
    chunks = {"gradient_cache_chunk_size": 2, "gradient_cache_retain": "auto"}
    trainer = trainer_of(model, **chunks, gradient_cache_memory_gib=memory)
    assert trainer.find_chunking(batch).retain == kept / 12
    assert f"keeps the graphs of {kept} of 12 chunks" in caplog.text


def test_checkpointing_keeps_all_graphs_that_fit_and_without_it_the_last_alone(pairs):
    for checkpointing, kept in ((False, 0), (True, 1)):
        model, batch = pairs(gradient_checkpointing=checkpointing)
        assert trainer_of(model, gradient_cache_chunk_size=2).find_chunking(batch).retain == kept
        asked = trainer_of(model, gradient_cache_chunk_size=2, gradient_cache_retain=0.5)
        assert asked.find_chunking(batch).retain == 0.5


def test_a_device_is_tried_with_fewer_rows_until_a_step_runs(pairs, monkeypatch):
    """Out of memory over five rows; a CPU stands in for the accelerator."""
    model, batch = pairs()
    monkeypatch.setattr(auto_chunking, "rows_by_estimate", auto_chunking.rows_by_trial)
    encode, tried = with_room_for_five_rows(model)
    settings = GradCacheSettings(gradient_cache_chunk_size="auto", gradient_cache_memory_gib=4.0)
    state = torch.get_rng_state()
    model.model.logit_scale.grad = torch.ones(1)
    found = auto_chunking.find_chunking(settings, [parts_of(model, batch, encode)])
    assert found.chunk_size == 4
    assert tried == [12, 6, 4, 4]
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, value in model.model.named_parameters() if value.grad is not None] == ["logit_scale"]


def test_auto_tokens_are_what_a_cpu_is_busy_with_or_fewer_where_memory_is_short(pairs, caplog):
    model, batch = pairs()
    caplog.set_level(logging.INFO, "vembed")
    assert trainer_of(model, gradient_cache_chunk_tokens="auto").find_chunking(batch).chunk_tokens == 4096
    assert caplog.messages[0].startswith("gradient_cache_chunk_tokens: auto is 4096 tokens here")
    memory = gib_for(model, batch, 3)
    trainer = trainer_of(model, gradient_cache_chunk_tokens="auto", gradient_cache_memory_gib=memory)
    found = trainer.find_chunking(batch)
    _, documents = chunk_batch(batch, model.processor, found)
    assert max(map(len, documents.rows)) == 3
    assert trainer.chunking_finder.resolved["gradient_cache_chunk_tokens"] == found.chunk_tokens

    nothing = trainer_of(model, gradient_cache_chunk_tokens="auto", gradient_cache_memory_gib=1e-6).find_chunking(batch)
    assert nothing.chunk_tokens == max(side.max_row_tokens for side in chunk_batch(batch, model.processor, found))


def test_a_device_is_tried_with_fewer_tokens_until_a_step_runs(pairs, monkeypatch):
    """Out of memory over five rows; a CPU stands in for the accelerator."""
    model, batch = pairs()
    monkeypatch.setattr(auto_chunking, "tokens_by_estimate", auto_chunking.tokens_by_trial)
    monkeypatch.setattr(auto_chunking, "_CPU_TOKENS", ROWS * max(row_sizes(batch.documents, model.processor).tolist()))
    encode, tried = with_room_for_five_rows(model)
    settings = GradCacheSettings(gradient_cache_chunk_tokens="auto", gradient_cache_memory_gib=4.0)
    found = auto_chunking.find_chunking(settings, [parts_of(model, batch, encode)])
    assert tried[0] == ROWS
    assert max(tried[-2:]) <= 5 < min(tried[:-2])
    rows = [side.rows for side in chunk_batch(batch, model.processor, found)]
    assert [max(map(len, side)) for side in rows] == tried[-2:]


def test_of_several_data_sets_the_largest_rows_decide(pairs):
    model, batch = pairs()
    short = ItemRows(tuple(replace(item, text="a") for item in batch.queries.items), "query")
    texts = replace(batch, queries=short, documents=replace(short, side="document"))
    memory = {"gradient_cache_chunk_size": "auto", "gradient_cache_memory_gib": gib_for(model, batch, 3)}
    assert trainer_of(model, **memory).find_chunking(texts).chunk_size > 3
    trainer = trainer_of(model, **memory)
    assert trainer.chunking_finder.is_undecided
    assert trainer.find_chunking(texts, batch).chunk_size == 3
    assert not trainer.chunking_finder.is_undecided
    assert not trainer_of(model).chunking_finder.is_undecided


def test_settings_without_auto_measure_nothing(pairs):
    model, batch = pairs()

    def encode(_chunk):
        raise AssertionError

    for settings, found in (
        (GradCacheSettings(), Chunking(chunk_size=32, max_hidden_state_bytes=GIB)),
        (GradCacheSettings(gradient_cache_chunk_tokens=7), Chunking(chunk_tokens=7, max_hidden_state_bytes=GIB)),
        (GradCacheSettings(use_gradient_cache=False), Chunking()),
    ):
        assert auto_chunking.find_chunking(settings, [parts_of(model, batch, encode)]) == found


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ({}, (32, None, 0.0)),
        ({"gradient_cache_chunk_size": 5, "gradient_cache_retain": 0.5}, (5, None, 0.5)),
        ({"gradient_cache_chunk_size": "auto", "gradient_cache_retain": "auto"}, (ROWS, None, 1.0)),
        ({"gradient_cache_chunk_tokens": 40}, (32, 40, 0.0)),
        ({"gradient_cache_chunk_tokens": "auto"}, (32, 4096, 0.0)),
        ({"use_gradient_cache": False}, (32, None, None)),
    ],
)
def test_a_checkpoint_holds_what_the_settings_are_in_numbers_and_a_resumed_run_keeps_them(pairs, asked, stored):
    """The format of checkpoints: what was written before must stay readable."""
    model, batch = pairs()
    finder = trainer_of(model, **asked).chunking_finder
    parts = [parts_of(model, batch, encode_of(model))]
    assert finder.resolved == {}
    chunking = finder.find(parts)
    keys = ("gradient_cache_chunk_size", "gradient_cache_chunk_tokens", "gradient_cache_retain")
    assert list(finder.resolved.items()) == list(zip(keys, stored, strict=True))

    again = trainer_of(model, **asked, gradient_cache_memory_gib=1e-6).chunking_finder
    again.restore(json.loads(json.dumps(finder.resolved)))
    assert not again.is_undecided
    assert again.find(parts) == chunking
    assert again.resolved == finder.resolved


def test_what_auto_stays_in_a_resumed_run_is_told(pairs, caplog):
    model, _ = pairs()
    caplog.set_level(logging.INFO, "vembed")
    finder = trainer_of(model, gradient_cache_chunk_size="auto", gradient_cache_retain=0.5).chunking_finder
    finder.restore({"gradient_cache_chunk_size": 6, "gradient_cache_chunk_tokens": None, "gradient_cache_retain": 0.5})
    assert caplog.messages == ["auto stays what the run began with: gradient_cache_chunk_size 6"]


def test_a_given_chunking_is_taken_whatever_the_settings_ask_for_and_told_of(pairs, caplog):
    model, batch = pairs()
    caplog.set_level(logging.INFO, "vembed")
    given = Chunking(chunk_size=4, retain=0.5)
    trainer = trainer_of(model, gradient_cache_chunk_size="auto").with_chunking(given, autocast=nullcontext)
    assert not trainer.chunking_finder.is_undecided
    assert trainer.find_chunking(batch) == trainer.find_chunking(batch) == given
    (told,) = caplog.messages
    assert "of up to 4 rows; 3 of these 6 need" in told
