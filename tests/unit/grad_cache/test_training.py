"""The ready step updates as a plain loop does; the deferred loss has the cached gradient when backward is called."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.gradients import assert_gradients_equal
from tests.unit.grad_cache.encoders import Encoder, contrast, gradients_of, graph_gradients, texts
from vembed.errors import NotFiniteError
from vembed.grad_cache.cachex.deferred import deferred_loss
from vembed.grad_cache.cachex.functional import ChunkedSide, cached_backward
from vembed.grad_cache.cachex.training import train_step

CHUNK_SIZES = [3, 8]


def sides(model: nn.Module, folder: str, chunk_size: int | None) -> list[ChunkedSide]:
    def encode(chunk: dict[str, Tensor]) -> Tensor:
        return model(**chunk)

    return [ChunkedSide(encode, texts(folder, 7, first), chunk_size) for first in (0, 5)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("max_grad_norm", [math.inf, 0.05])
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_step_is_the_plain_step(bert_folder, chunk_size, max_grad_norm):
    plain, model = Encoder(bert_folder), Encoder(bert_folder)
    plain_optimizer, optimizer = (torch.optim.AdamW(one.parameters(), lr=1e-2, eps=1e-3) for one in (plain, model))
    for _ in range(3):
        plain_optimizer.zero_grad()
        loss = contrast(*[side.encode(side.inputs) for side in sides(plain, bert_folder, None)])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        plain_optimizer.step()
        ours = sides(model, bert_folder, chunk_size)
        report = train_step(ours, contrast, optimizer, max_grad_norm=max_grad_norm, retain=0.5)
        assert report.loss == pytest.approx(loss.item(), rel=1e-9)
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-9)
    assert_gradients_equal(weights(model), weights(plain))
    assert not torch.equal(
        model.model.embeddings.word_embeddings.weight, Encoder(bert_folder).model.embeddings.word_embeddings.weight
    )


def test_a_step_with_a_scaler_skips_what_overflows_and_then_updates(bert_folder):
    model = Encoder(bert_folder).float()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def loss(*reps: Tensor) -> Tensor:
        return 1e4 * contrast(*reps)

    report = train_step(sides(model, bert_folder, 3), loss, optimizer, scaler=scaler)
    assert not math.isfinite(report.grad_norm)
    assert_gradients_equal(weights(model), before)
    assert scaler.get_scale() == 2.0**126
    scaler.update(2.0**10)
    exact = Encoder(bert_folder).float()
    expected = train_step(sides(exact, bert_folder, None), loss, torch.optim.SGD(exact.parameters(), lr=1.0))
    report = train_step(sides(model, bert_folder, 3), loss, optimizer, scaler=scaler)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert_gradients_equal(weights(model), weights(exact), tolerance=1e-4)


def test_a_step_that_is_not_finite_updates_nothing(bert_folder):
    model = Encoder(bert_folder)
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        train_step(sides(model, bert_folder, 3), lambda *reps: contrast(*reps) * math.nan, optimizer)
    assert_gradients_equal(weights(model), before)


@pytest.mark.parametrize("retain", [0, 0.5, 1])
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_deferred_loss_has_the_gradient_times_what_comes_before_it(bert_folder, chunk_size, retain):
    model, temperature = Encoder(bert_folder, dropout=0.3), nn.Linear(1, 1).double()

    def loss(*reps: Tensor) -> Tensor:
        return contrast(*reps) * temperature.weight.sum()  # a parameter that only the loss reads

    torch.manual_seed(1)
    expected_loss = cached_backward(sides(model, bert_folder, chunk_size), loss)
    expected = gradients_of(model, temperature)
    torch.manual_seed(1)
    value = deferred_loss(sides(model, bert_folder, chunk_size), loss, retain=retain)
    state = torch.get_rng_state()
    assert torch.equal(value, expected_loss)
    (value / 4 + 1).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert_gradients_equal(gradients_of(model, temperature), {name: one / 4 for name, one in expected.items()})


def test_a_deferred_loss_of_one_chunk_is_one_forward_and_of_more_two(bert_folder):
    model = Encoder(bert_folder)
    seen = []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    deferred_loss(sides(model, bert_folder, 8), contrast).backward()
    assert seen == [7, 7]
    seen.clear()
    deferred_loss(sides(model, bert_folder, 4), contrast).backward()
    assert seen == [4, 3, 4, 3, *[4, 3, 4]]  # the last chunk keeps its graph
    seen.clear()
    deferred_loss(sides(model, bert_folder, 4), contrast, retain=0.5).backward()
    assert seen == [4, 3, 4, 3, *[3, 4]]


def test_a_deferred_loss_replays_under_the_autocast_of_its_making(bert_folder):
    model = Encoder(bert_folder).float()
    dtypes = []
    model.model.encoder.layer[1].output.dense.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = deferred_loss(sides(model, bert_folder, 4), contrast)
    loss.backward()
    assert dtypes == [torch.bfloat16] * 7


def test_a_deferred_loss_under_no_grad_is_a_value(bert_folder):
    model = Encoder(bert_folder)
    with torch.no_grad():
        value = deferred_loss(sides(model, bert_folder, 3), contrast)
    assert not value.requires_grad
    exact = contrast(*[side.encode(side.inputs) for side in sides(model, bert_folder, None)])
    assert value.item() == pytest.approx(exact.item(), rel=1e-9)
    assert graph_gradients(exact, model)
