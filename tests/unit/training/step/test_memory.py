"""The parts of the memory estimate against what torch itself keeps."""

from dataclasses import replace

import pytest
import torch

from tests.pictures import write_pairs
from vembed.data.batches.loader import TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.training.precision import choose_precision
from vembed.training.settings import TrainingSettings
from vembed.training.step.chunking import Chunking
from vembed.training.step.memory import estimate_memory

ROWS = 12
WHOLE = Chunking(chunk_size=ROWS)


@pytest.fixture(scope="module", params=["t2i", "m2i"])
def batch_of(request, tmp_path_factory):
    """A function that gives the model's batch of all rows."""
    path = write_pairs(tmp_path_factory.mktemp("pairs"), ROWS, request.param)
    settings = DataSettings(data_path=path, retrieval_mode=request.param)

    def batch(model):
        datasets = load_datasets(path, settings)
        return next(TrainingLoader(datasets, model.processor, settings, batch_size=ROWS, seed=0).epoch(0))[0]

    return batch


def estimate(model, batch, chunking=WHOLE):
    return estimate_memory(
        model.model,
        model.processor,
        batch,
        chunking=chunking,
        precision=choose_precision(TrainingSettings(device="cpu")),
    ).parts


def kept_bytes(model, side):
    """Bytes of the storages that a forward of the whole side keeps, parameters left out, counted one by one."""
    own = {value.untyped_storage().data_ptr() for value in model.model.state_dict().values()}
    kept = {}

    def pack(value):
        kept[value.untyped_storage().data_ptr()] = value
        return value

    model.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        embeddings = model.model(model.processor.finish(model.processor.prepare(side.items, side.side)))
    assert embeddings.vectors.requires_grad
    return sum(value.untyped_storage().nbytes() for pointer, value in kept.items() if pointer not in own)


def test_activations_of_two_rows_tell_those_of_a_chunk(clip_folder, batch_of):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    batch = batch_of(model)
    sides = [kept_bytes(model, side) for side in (batch.queries, batch.documents)]
    plain = estimate(model, batch, Chunking())["activations"]
    assert plain == pytest.approx(sum(sides), rel=0.05)
    assert estimate(model, batch)["activations"] == plain
    third = estimate(model, batch, Chunking(chunk_size=ROWS // 3))["activations"]
    assert third == pytest.approx(max(sides) / 3, rel=0.1)


def test_graphs_that_are_kept_count(clip_folder, batch_of):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    batch = batch_of(model)
    sides = [kept_bytes(model, side) for side in (batch.queries, batch.documents)]

    def activations(share):
        return estimate(model, batch, Chunking(chunk_size=ROWS // 3, retain=share))["activations"]

    assert activations(0.0) == activations(1 / 6) == pytest.approx(max(sides) / 3, rel=0.1)
    assert activations(0.5) == pytest.approx(max(max(sides) / 3, sides[1]), rel=0.1)
    assert activations(1.0) == pytest.approx(sum(sides), rel=0.1)


def test_what_is_frozen_takes_no_gradients_moments_or_activations(clip_folder, batch_of):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    batch = batch_of(model)
    before = estimate(model, batch)
    assert before["AdamW"] == 2 * before["gradients"]
    model.model.freeze(["vision"])
    after = estimate(model, batch)
    vision = sum(info.parameter.numel() for info in parameter_infos(model.model) if info.part == "vision")
    assert before["gradients"] - after["gradients"] == 4 * vision
    assert after["activations"] < before["activations"]
    assert after["weights"] == before["weights"]


def test_estimating_changes_nothing(clip_folder, batch_of):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    batch = batch_of(model)
    before = torch.get_rng_state()
    estimate(model, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.model.training
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_weights_count_in_the_dtype_that_they_are_held_in(clip_folder, batch_of):
    def weights(**settings):
        model = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(use_lora=True, **settings))
        parts = estimate(model, batch_of(model))
        return parts["weights"], parts["AdamW"]

    (whole, moments), (half, same_moments) = weights(), weights(torch_dtype="bfloat16")
    assert whole / 2 < half < 0.8 * whole  # adapters, and projections that learn, are float32 in both
    assert moments > 0.9 * same_moments > 0


def test_of_a_large_batch_no_more_scores_are_counted_than_exist_at_once(batch_of, bert_folder, vit_folder):
    settings = ModelSettings(text_model_name=bert_folder, image_model_name=vit_folder)
    model = VisualRetrievalModel.from_pretrained(None, settings)
    batch = batch_of(model)
    times = 256
    many = [replace(side, items=side.items * times) for side in (batch.queries, batch.documents)]
    large = replace(batch, queries=many[0], documents=many[1])
    embeddings = 4 * 2 * sum(side.num_rows for side in many) * model.model.dim
    scores = estimate(model, large)["embeddings and scores"] - embeddings
    assert many[0].num_rows * many[1].num_rows > 8 * 2**20
    assert scores == 4 * 6 * 2**20  # six matrices of a strip, which the losses make of a million scores at most
