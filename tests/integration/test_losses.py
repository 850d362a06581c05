"""Every loss trains a real model from a file; what a loss cannot work with is refused before anything is written."""

import json
import math

import pytest
import torch

from tests.pictures import write_jsonl
from vembed.errors import ConfigError, DataError, NotFiniteError
from vembed.losses.registry import LossRegistry
from vembed.model.modeling import VisualRetrievalModel
from vembed.trainer import Trainer
from vembed.training import loop
from vembed.training.gradient_cache_trainer import GradientCacheTrainer

WORDS = "red blue green small large round square bright dark picture sign shape".split()
OPTIONS = {
    "triplet": {"triplet_mining": "explicit"},
    "mrl": {"mrl_dims": [16, 8], "mrl_weights": [1.0, 0.5]},
    "infonce": {"label_smoothing": 0.1, "query_to_query": True, "use_mrl": True, "mrl_dims": [8]},
}


@pytest.fixture
def settings(tmp_path, bert_folder):
    rows = [
        {
            "query": f"{word} {number}",
            "positive": f"{word} {WORDS[number - 1]}",
            "negatives": [f"{WORDS[number - 2]} {word}"],
            "score": [1, number % 2],
            "group": word[0],
            "ignore": [f"{word} {WORDS[number - 3]}"],
        }
        for number, word in enumerate(WORDS)
    ]
    return {
        "model_name": bert_folder,
        "data_path": write_jsonl(tmp_path / "train.jsonl", rows),
        "retrieval_mode": "t2t",
        "output_dir": str(tmp_path / "run"),
        "val_fraction": 0,
        "batch_size": 6,
        "gradient_cache_chunk_size": 4,
        "learning_rate": 1e-3,
        "epochs": 1,
        "logging_steps": 1,
        "report": False,
        "device": "cpu",
    }


def temperatures_of(run):
    return [json.loads(line)["temperature"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_of(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss_type", [name for name in LossRegistry.list() if name != "colbert"])
def test_every_loss_trains(loss_type, tmp_path, settings, bert_folder):
    result = Trainer(settings).train(loss_type=loss_type, **OPTIONS.get(loss_type, {}))
    losses = losses_of(tmp_path / "run")
    assert len(losses) == result.num_steps == 2
    assert all(loss > 0 for loss in losses)
    weights = [
        VisualRetrievalModel.from_pretrained(str(folder)).model.state_dict() for folder in (result.final, bert_folder)
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[1] if "scale" not in name)


def test_a_bias_that_the_loss_learns_is_trained_saved_and_continued(tmp_path, settings):
    Trainer(settings).train(loss_type="sigmoid", max_steps=1, epochs=2, save_steps=1)
    state = VisualRetrievalModel.from_pretrained(str(tmp_path / "run" / "checkpoint-1")).model
    assert state.logit_bias.item() == pytest.approx(-10, abs=0.01)
    assert state.logit_scale.exp().item() == pytest.approx(10, abs=0.1)
    result = Trainer(settings).train(loss_type="sigmoid", epochs=2, save_steps=1, resume_from_checkpoint="latest")
    assert result.num_steps == 4
    final = VisualRetrievalModel.from_pretrained(str(result.final)).model
    assert final.logit_bias.item() != state.logit_bias.item()


@pytest.mark.parametrize(("mode", "start"), [(None, 0.05), ("colbert", 1.0)])
def test_a_run_starts_from_the_temperature_that_its_checkpoint_learned(mode, start, tmp_path, settings):
    if mode is not None:
        settings |= {"encoder_mode": mode, "projection_dim": 8}
    first = Trainer(settings).train(head_learning_rate=0.5, lr_scheduler="constant", warmup_ratio=0)
    before, learned = temperatures_of(tmp_path / "run")
    assert before == pytest.approx(start, rel=0.7)
    assert abs(math.log(learned / start)) > 0.5
    settings |= {"model_name": str(first.final), "output_dir": str(tmp_path / "again")}
    for key in ("encoder_mode", "projection_dim"):
        settings.pop(key, None)
    Trainer(settings).train(head_learning_rate=1e-6, max_steps=1)
    assert temperatures_of(tmp_path / "again") == [pytest.approx(learned, rel=1e-4)]


def test_the_widths_that_were_trained_are_in_the_models_record(tmp_path, settings):
    result = Trainer(settings).train(loss_type="mrl", mrl_dims=[16, 4], max_steps=1)
    assert json.loads((result.final / "vembed_config.json").read_text())["widths"] == [16, 4]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"loss_type": "colbert"}, ConfigError, "colbert is late interaction and needs one vector per token"),
        ({"use_mrl": True, "mrl_dims": [4096]}, ConfigError, "mrl_dims: 4096 is wider than the model's embeddings"),
        ({"use_mrl": True, "mrl_tokens": [4]}, ConfigError, "mrl_tokens: the model gives one vector per row"),
        (
            {"loss_type": "contrastive", "column_mapping": {"score": "group"}},
            DataError,
            r"train.jsonl:1: score \(column",
        ),
        ({"loss_type": "infonce", "margin": 0.1}, ConfigError, "margin: only loss_type: contrastive or triplet has"),
        (
            {"loss_type": "triplet", "temperature": 0.1},
            ConfigError,
            "temperature: only loss_type: .*infonce.* has this",
        ),
        ({"temperature": 0.005}, ConfigError, "temperature: expected float, at least 0.01, at most 100; got 0.005"),
        ({"query_image_as_negative": True}, ConfigError, "has an effect only with retrieval_mode m2i"),
    ],
)
def test_what_a_loss_cannot_work_with_is_refused_before_anything_is_written(tmp_path, settings, change, error, words):
    with pytest.raises(error, match=words):
        Trainer(settings).train(**change)
    assert not (tmp_path / "run").exists()


def test_a_nan_in_training_names_the_last_checkpoint_which_stays(tmp_path, settings, monkeypatch):
    steps = []
    real = GradientCacheTrainer._loss

    def spoiled(self, *sides):
        steps.append(1)
        return real(self, *sides) * (math.nan if len(steps) == 4 else 1)

    monkeypatch.setattr(GradientCacheTrainer, "_loss", spoiled)
    told = (
        r"(?s)^step 4: the loss is not finite.*before that are in .*checkpoint-3; from those in .*checkpoint-2, which"
    )
    with pytest.raises(NotFiniteError, match=told):
        Trainer(settings).train(epochs=3, save_steps=1)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    result = Trainer(settings).train(epochs=3, save_steps=1, on_nan="skip", resume_from_checkpoint="latest")
    assert result.num_steps == 6
    assert None not in losses_of(tmp_path / "run")
    steps.clear()
    Trainer(settings).train(epochs=3, on_nan="skip", overwrite_output_dir=True)
    assert [number for number, loss in enumerate(losses_of(tmp_path / "run"), 1) if loss is None] == [4]


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
def test_weights_that_are_no_numbers_are_not_written_over_good_ones(tmp_path, settings, monkeypatch, on_nan):
    real = loop.apply_schedule

    def spoiled(optimizer, factor):
        real(optimizer, factor)
        if len(optimizer.state) and optimizer.state[optimizer.param_groups[-1]["params"][0]]["step"] == 3:
            for group in optimizer.param_groups:  # AdamW's decay multiplies the weights by 1 - lr * weight_decay
                group["weight_decay"] *= 1e44

    monkeypatch.setattr(loop, "apply_schedule", spoiled)
    told = r"(?s)^step 4: after it the model's weights are not finite, such as .*before that are in .*checkpoint-3 \("
    with pytest.raises(NotFiniteError, match=told):
        Trainer(settings).train(epochs=3, save_steps=1, on_nan=on_nan)
    left = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert left == ["checkpoint-2", "checkpoint-3"]
