"""The loop on a tiny CLIP: what one step does to the parameters, and what happens when."""

import itertools
import math
import weakref
from dataclasses import replace

import pytest
import torch

from tests.pictures import write_jsonl, write_pairs
from vembed.data.batches.loader import TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.errors import NotFiniteError
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.settings import LossSettings
from vembed.model.learning.scale import set_temperature
from vembed.model.modeling import VisualRetrievalModel
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.interrupts import StopRequested, StopSignal
from vembed.training.loop import Engine, Hooks, fit, steps_of_epoch
from vembed.training.plan import make_plan
from vembed.training.precision import choose_precision
from vembed.training.schedule import Schedule
from vembed.training.settings import TrainingSettings
from vembed.training.state import LogWindow, TrainState

ROWS = 10


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), ROWS)


class Parts:
    """A tiny CLIP, its loader, and an engine that steps with plain gradient descent of rate 1."""

    def __init__(self, folder, pairs, *, data=None, **settings):
        training = TrainingSettings(device="cpu", **{"batch_size": 4, "epochs": 2, **settings})
        data = DataSettings(data_path=pairs, **(data or {}))
        self.model = VisualRetrievalModel.from_pretrained(folder)
        self.loader = TrainingLoader(
            load_datasets(pairs, data), self.model.processor, data, batch_size=training.batch_size, seed=0
        )
        self.plan = make_plan(training, self.loader)
        precision = choose_precision(training)
        self.trainer = GradientCacheTrainer(
            self.model.model,
            self.model.processor,
            LossFactory.create(LossSettings()),
            settings=GradCacheSettings(),
            autocast=precision.autocast,
        )
        parameters = list(self.model.model.parameters())
        group = {"params": parameters, "initial_lr": 1.0, "part": "text"}
        optimizer = torch.optim.SGD([group], lr=1.0)
        schedule = Schedule("constant", self.plan.num_steps, 0)
        self.engine = Engine(self.model.model, self.trainer, optimizer, schedule, precision, 0.0)

    def weights(self):
        return {name: value.detach().clone() for name, value in self.model.model.named_parameters()}

    def batches(self, epoch=0):
        return [batch for batch, _ in self.loader.epoch(epoch)]

    def gradient(self, batches):
        """The gradient of the mean loss of some batches, one backward after the other."""
        self.model.model.train()
        self.model.model.zero_grad()
        for batch in batches:
            self.trainer.step(batch, loss_scale=1 / len(batches))
        found = {
            name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
            for name, value in self.model.model.named_parameters()
        }
        self.model.model.zero_grad()
        return found


def hooks(log, stop=None, evaluate=None):
    """Hooks that note what is called, with the step."""

    class Watcher:
        def on_step(self, record, state):
            log.append(("step", state.step))

        def on_log(self, record, state):
            log.append(("log", state.step, state.window.num_steps))

        def on_evaluation(self, metrics, state):
            log.append(("metrics", state.step, metrics))

    return Hooks(
        evaluate=evaluate,
        keep_best=lambda metrics, state: log.append(("keep_best", state.step)),
        save=lambda state: log.append(("save", state.step)),
        callbacks=[Watcher()],
        stop=stop or StopSignal(),
    )


def test_a_step_applies_the_mean_gradient_of_its_batches(clip_folder, pairs):
    """10 rows are batches of 4, 4 and 2: with two batches per step, the second step has one batch only."""
    parts = Parts(clip_folder, pairs, gradient_accumulation_steps=2)
    batches = parts.batches()
    assert [batch.queries.num_rows for batch in batches] == [4, 4, 2]
    assert parts.plan.steps_per_epoch == 2
    state = TrainState()
    steps = steps_of_epoch(parts.engine, parts.loader, parts.plan, state)
    for own in (batches[:2], batches[2:]):
        before, gradient = parts.weights(), parts.gradient(own)
        record = next(steps)
        for name, weight in parts.weights().items():
            torch.testing.assert_close(before[name] - weight, gradient[name], rtol=1e-4, atol=1e-6)
        norm = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
        assert record.grad_norm == pytest.approx(norm, rel=1e-4)
        assert record.num_samples == sum(batch.queries.num_rows for batch in own)
    assert (state.step, state.num_samples) == (2, 10)
    assert next(steps, None) is None


class Watched:
    """A loader that notes how many items of the batch before are alive when the next is asked for."""

    def __init__(self, loader):
        self.loader = loader
        self.alive = []

    def epoch(self, epoch, state=None):
        batches = self.loader.epoch(epoch, state)
        while True:
            pair = next(batches, None)
            if pair is None:
                return
            items = [weakref.ref(item) for side in (pair[0].queries, pair[0].documents) for item in side.items]
            assert len(items) >= 4
            yield pair
            del pair
            self.alive.append(sum(item() is not None for item in items))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_no_two_batches_are_held_at_once(clip_folder, pairs, accumulation):
    parts = Parts(clip_folder, pairs, gradient_accumulation_steps=accumulation)
    watched = Watched(parts.loader)
    for _ in steps_of_epoch(parts.engine, watched, parts.plan, TrainState()):
        pass
    assert watched.alive == [0, 0, 0]


def test_texts_that_are_cut_are_counted_once_per_step(clip_folder, tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"query": "a " * 100, "positive": f"{number}"} for number in range(8)])
    parts = Parts(clip_folder, path, data={"retrieval_mode": "t2t"}, batch_size=4)
    counts = []
    for settings in (
        {"use_gradient_cache": False},
        {"gradient_cache_chunk_size": 1},
        {"gradient_cache_chunk_tokens": 99},
    ):
        trainer = GradientCacheTrainer(
            parts.model.model, parts.model.processor, LossFactory.create(LossSettings()), GradCacheSettings(**settings)
        )
        state = TrainState()
        list(steps_of_epoch(replace(parts.engine, trainer=trainer), parts.loader, parts.plan, state))
        counts.append(state.num_truncated_texts)
    assert counts == [8, 8, 8]


def test_gradients_are_scaled_down_to_the_largest_norm_allowed(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    engine = replace(parts.engine, max_grad_norm=0.01)
    before, gradient = parts.weights(), parts.gradient(parts.batches()[:1])
    record = next(steps_of_epoch(engine, parts.loader, parts.plan, TrainState()))
    assert record.grad_norm > 0.1
    moved = {name: before[name] - weight for name, weight in parts.weights().items()}
    assert math.sqrt(sum(float(value.square().sum()) for value in moved.values())) == pytest.approx(0.01, rel=1e-3)
    for name, value in moved.items():
        torch.testing.assert_close(value, gradient[name] * 0.01 / record.grad_norm, rtol=1e-3, atol=1e-7)


def test_a_scaler_leaves_the_step_as_it_is(clip_folder, pairs):
    plain, scaled = Parts(clip_folder, pairs), Parts(clip_folder, pairs)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    engine = replace(scaled.engine, precision=replace(scaled.engine.precision, scaler=scaler))
    expected = next(steps_of_epoch(plain.engine, plain.loader, plain.plan, TrainState()))
    record = next(steps_of_epoch(engine, scaled.loader, scaled.plan, TrainState()))
    assert record.loss == expected.loss
    assert record.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    for name, weight in plain.weights().items():
        torch.testing.assert_close(scaled.weights()[name], weight, rtol=1e-5, atol=1e-6)


def test_overflowing_gradients_are_skipped_and_counted(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    engine = replace(parts.engine, precision=replace(parts.engine.precision, scaler=scaler))
    before, state = parts.weights(), TrainState()
    record = next(steps_of_epoch(engine, parts.loader, parts.plan, state))
    assert (record.skipped, state.step, state.num_skipped_steps) == (True, 1, 1)
    assert scaler.get_scale() < 3e38
    assert all(torch.equal(weight, before[name]) for name, weight in parts.weights().items())


def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights_change(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    parts.model.model.logit_scale.register_hook(lambda gradient: gradient * math.nan)
    before = parts.weights()
    with pytest.raises(
        NotFiniteError, match=r"^step 1: the gradient's norm is nan: training diverged at \S*\.jsonl:\d+, .*; lower the"
    ):
        next(steps_of_epoch(parts.engine, parts.loader, parts.plan, TrainState()))
    assert all(torch.equal(weight, before[name]) for name, weight in parts.weights().items())


def nan_at(parts, *calls):
    """Makes the loss of these batches (counted from 1) NaN."""
    objective, count = parts.trainer._objective, itertools.count(1)

    def spoiled(*sides, **options):
        loss = objective(*sides, **options)
        return loss * math.nan if next(count) in calls else loss

    spoiled.classes = None
    parts.trainer._objective = spoiled


def test_a_loss_that_is_no_number_stops_the_run_with_its_step(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    nan_at(parts, 2)
    steps = steps_of_epoch(parts.engine, parts.loader, parts.plan, TrainState())
    next(steps)
    before = parts.weights()
    with pytest.raises(NotFiniteError, match=r"^step 2: the loss is not finite though all embeddings are"):
        next(steps)
    assert all(torch.equal(weight, before[name]) for name, weight in parts.weights().items())


@pytest.mark.parametrize("shares", [1, 2])
def test_a_step_with_a_nan_is_left_out_whole_if_asked_for(clip_folder, pairs, shares, caplog):
    parts = Parts(clip_folder, pairs, gradient_accumulation_steps=shares, batch_size=2, max_steps=2)
    engine = replace(parts.engine, on_nan="skip")
    nan_at(parts, shares)  # the last batch of the first step
    state, before = TrainState(), parts.weights()
    steps = steps_of_epoch(engine, parts.loader, parts.plan, state)
    record = next(steps)
    assert (record.skipped, state.step, state.num_skipped_steps, state.num_nan_in_a_row) == (True, 1, 1, 1)
    assert math.isnan(record.loss) == (shares == 1)
    assert all(torch.equal(weight, before[name]) for name, weight in parts.weights().items())
    assert "step 1 is left out: the loss is not finite" in caplog.text
    assert not next(steps).skipped
    assert (state.step, state.num_skipped_steps, state.num_nan_in_a_row) == (2, 1, 0)
    assert not all(torch.equal(weight, before[name]) for name, weight in parts.weights().items())


@pytest.mark.parametrize("save_steps", [2, None])
def test_no_checkpoint_is_written_of_steps_that_were_left_out(clip_folder, pairs, save_steps):
    parts = Parts(clip_folder, pairs, batch_size=3, epochs=2, save_steps=save_steps)  # 3 steps in an epoch
    engine, log = replace(parts.engine, on_nan="skip"), []
    nan_at(parts, 2, 3)
    fit(engine, parts.loader, parts.plan, TrainState(), hooks=hooks(log))
    assert parts.plan.num_steps == 6
    assert [entry[1] for entry in log if entry[0] == "save"] == ([4, 6] if save_steps else [6])


def test_a_gradient_that_is_no_number_is_left_out_if_asked_for(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    parts.model.model.logit_scale.register_hook(lambda gradient: gradient * math.nan)
    before, state = parts.weights(), TrainState()
    record = next(steps_of_epoch(replace(parts.engine, on_nan="skip"), parts.loader, parts.plan, state))
    assert (record.skipped, state.num_nan_in_a_row) == (True, 1)
    assert all(torch.equal(weight, before[name]) for name, weight in parts.weights().items())


def test_too_many_steps_without_a_number_in_a_row_stop_the_run(clip_folder, pairs):
    parts = Parts(clip_folder, pairs, batch_size=1, epochs=3)
    engine = replace(parts.engine, on_nan="skip")
    nan_at(parts, *range(1, 100))
    with pytest.raises(NotFiniteError, match=r"^step 20: the 20th in a row to be left out: the loss is not finite"):
        fit(engine, parts.loader, parts.plan, TrainState(), hooks=hooks([]))


def test_a_window_without_a_number_says_so_in_the_metrics():
    window = LogWindow()
    window.add(math.nan, 8, 1.0)
    assert math.isnan(window.mean_loss)
    window.add(3.0, 8, 1.0)
    assert (window.mean_loss, window.num_samples) == (3.0, 16)


def test_the_temperature_stays_within_its_limit(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    set_temperature(parts.model.model, 1 / 99.9)
    parts.model.model.logit_scale.register_hook(lambda gradient: gradient * 0 - 1)  # upwards
    record = next(steps_of_epoch(parts.engine, parts.loader, parts.plan, TrainState()))
    assert record.temperature == pytest.approx(0.01)
    assert parts.model.model.logit_scale.item() == pytest.approx(math.log(100))


def run(parts, log, state=None, **options):
    state = state or TrainState()
    fit(parts.engine, parts.loader, parts.plan, state, hooks=hooks(log, **options))
    return state


def test_an_epoch_ends_with_an_evaluation_and_a_checkpoint(clip_folder, pairs):
    log = []
    state = run(Parts(clip_folder, pairs, logging_steps=2), log, evaluate=lambda: {"a": {"mrr": 1.0}})
    figures = {"a": {"mrr": 1.0}}
    assert log == [
        *(("step", 1), ("step", 2), ("log", 2, 2), ("step", 3)),
        *(("metrics", 3, figures), ("keep_best", 3), ("save", 3)),
        *(("step", 4), ("log", 4, 2), ("step", 5), ("step", 6), ("log", 6, 2)),
        *(("metrics", 6, figures), ("keep_best", 6), ("save", 6)),
    ]
    assert (state.step, state.num_samples, state.evaluated_step, state.saved_step) == (6, 20, 6, 6)


def test_an_evaluation_leaves_the_random_numbers_and_the_mode_of_training(clip_folder, pairs):
    modes = []
    parts = Parts(clip_folder, pairs, eval_steps=1)

    def evaluate():
        modes.append(parts.model.model.training)
        torch.rand(3)
        return {"a": {"mrr": 1.0}}

    class Watcher:
        def on_step(self, record, state):
            modes.append(parts.model.model.training)

        def on_log(self, record, state): ...

        def on_evaluation(self, metrics, state): ...

    before = torch.get_rng_state()
    watched = replace(hooks([], evaluate=evaluate), callbacks=[Watcher()])
    fit(parts.engine, parts.loader, parts.plan, TrainState(), hooks=watched)
    assert torch.equal(torch.get_rng_state(), before)  # a CLIP has no dropout
    assert modes == [True, False] * 6


def test_steps_between_evaluations_and_checkpoints(clip_folder, pairs):
    log = []
    parts = Parts(clip_folder, pairs, eval_steps=2, save_steps=3, max_steps=7, epochs=3, logging_steps=5)
    run(parts, log, evaluate=lambda: {"a": {"mrr": 1.0}})
    assert [entry[1] for entry in log if entry[0] == "keep_best"] == [2, 4, 6, 7]
    assert [entry[1] for entry in log if entry[0] == "save"] == [3, 6, 7]
    assert [entry[1:] for entry in log if entry[0] == "log"] == [(5, 5), (7, 2)]


def test_without_validation_no_best_is_kept(clip_folder, pairs):
    log = []
    run(Parts(clip_folder, pairs, max_steps=2), log)
    assert log == [("step", 1), ("step", 2), ("log", 2, 2), ("save", 2)]


def test_a_run_ends_with_its_epochs_or_max_steps_whichever_comes_first(clip_folder, pairs):
    parts = Parts(clip_folder, pairs, max_steps=8, epochs=5)
    assert (parts.plan.num_steps, parts.plan.num_epochs) == (8, 3)
    state = run(parts, [])
    assert (state.step, state.epoch) == (8, 2)
    assert Parts(clip_folder, pairs, max_steps=8, epochs=1).plan.num_steps == 3


def test_a_signal_stops_after_the_step_and_the_evaluation_is_made_up_for(clip_folder, pairs):
    parts = Parts(clip_folder, pairs, eval_steps=2)
    log, stop, state = [], StopSignal(), TrainState()

    class Stopper:
        def on_step(self, record, state):
            if state.step == 2:
                stop.receive(2, None)

        def on_log(self, record, state): ...

        def on_evaluation(self, metrics, state): ...

    watched = hooks(log, stop=stop, evaluate=lambda: {"a": {"mrr": 1.0}})
    with pytest.raises(StopRequested):
        fit(
            *(parts.engine, parts.loader, parts.plan, state),
            hooks=replace(watched, callbacks=[*watched.callbacks, Stopper()]),
        )
    assert log == [("step", 1), ("step", 2)]
    run(parts, log, state=TrainState.from_dict(state.to_dict()), evaluate=lambda: {"a": {"mrr": 1.0}})
    assert [entry[1] for entry in log if entry[0] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [entry[1] for entry in log if entry[0] == "keep_best"] == [2, 4, 6]


def test_a_signal_during_an_evaluation_leaves_it_undone(clip_folder, pairs):
    parts = Parts(clip_folder, pairs)
    log, stop, state = [], StopSignal(), TrainState()
    moment = hooks(log, stop=stop, evaluate=lambda: stop.receive(15, None))
    before = torch.get_rng_state()
    with pytest.raises(StopRequested):
        fit(parts.engine, parts.loader, parts.plan, state, hooks=moment)
    assert (state.step, state.evaluated_step, state.epoch) == (3, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    run(parts, log, state=state, evaluate=lambda: {"a": {"mrr": 1.0}})
    assert [entry[1] for entry in log if entry[0] == "keep_best"] == [3, 6]
    assert [entry[1] for entry in log if entry[0] == "save"] == [3, 6]
