"""Preference optimisation of real models from a file: it starts at log 2, raises the chosen, and goes on exactly."""

import json
import math
import shutil

import pytest
import torch

from tests import tiny
from tests.cases import CASES
from tests.integration.test_train_resume import assert_same_run
from tests.pictures import write_jsonl, write_pairs
from vembed.errors import CheckpointError, DataError
from vembed.model.modeling import VisualRetrievalModel
from vembed.trainer import Trainer
from vembed.types import Item

WORDS = "red blue green small large round square bright dark picture sign shape".split()
LORA = {"use_lora": True, "lora_dropout": 0.1, "head_learning_rate": 1e-2}
WAYS = {"full": {"learning_rate": 3e-3}, "lora": LORA}


@pytest.fixture
def rows():
    return [
        {
            "query": f"{word} {WORDS[number - 1]}",
            "positive": f"{word} {WORDS[number - 2]}",
            "negatives": [f"{WORDS[number - 3]} {word}", f"{WORDS[number - 4]} {WORDS[number - 5]}"],
        }
        for number, word in enumerate(WORDS)
    ]


@pytest.fixture
def settings(tmp_path, bert_folder, rows):
    return {
        "model_name": bert_folder,
        "data_path": write_jsonl(tmp_path / "train.jsonl", rows),
        "retrieval_mode": "t2t",
        "loss_type": "preference",
        "output_dir": str(tmp_path / "run"),
        **{"val_fraction": 0, "batch_size": 6, "gradient_cache_chunk_size": 4, "logging_steps": 1},
        **{"report": False, "device": "cpu"},
    }


def leads(name, rows):
    """By how much each row's chosen document leads its rejected ones, on average."""
    model = VisualRetrievalModel.from_pretrained(str(name))

    def embed(texts, side):
        return model.encode([Item(text=text) for text in texts], side=side).vectors

    queries = embed([row["query"] for row in rows], "query")
    chosen = embed([row["positive"] for row in rows], "document")
    rejected = [embed([row["negatives"][number] for row in rows], "document") for number in (0, 1)]
    return (queries * chosen).sum(dim=1) - sum((queries * side).sum(dim=1) for side in rejected) / 2


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", WAYS)
def test_training_raises_the_chosen_over_the_rejected(way, tmp_path, settings, rows, bert_folder):
    result = Trainer(settings).train(epochs=15, save_steps=100, gradient_cache_chunk_size=18, **WAYS[way])
    before, after = leads(bert_folder, rows), leads(result.final, rows)
    assert (after - before).mean() > 0.05
    assert ((after - before) > 0).float().mean() > 0.8
    lines = lines_of(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.3)  # but for dropout
    assert sum(line["loss"] for line in lines[-6:]) / 6 < math.log(2) - 0.05
    assert {line["temperature"] for line in lines} == {lines[0]["temperature"]}


def test_with_an_infonce_term_the_temperature_learns_too(tmp_path, settings):
    Trainer(settings).train(epochs=1, preference_infonce_weight=0.5, learning_rate=1e-3)
    first, last = lines_of(tmp_path / "run")
    assert first["temperature"] != last["temperature"]
    assert first["loss"] > 1


def test_without_dropout_the_first_loss_is_log_2_to_rounding(tmp_path, settings, rows):
    """Pictures and text, at several widths, through the gradient cache."""
    model = CASES["clip"].make(str(tmp_path / "clip"))
    data = write_pairs(tmp_path / "data", 6, "m2i", num_negatives=2)
    Trainer(settings).train(model_name=model, data_path=data, retrieval_mode="m2i", max_steps=1, **LORA)
    assert lines_of(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    more = {"mrl_dims": [16, 8], "use_mrl": True, "mixed_precision": "bf16", "overwrite_output_dir": True}
    Trainer(settings).train(model_name=model, data_path=data, retrieval_mode="m2i", max_steps=1, **more)
    assert lines_of(tmp_path / "run")[0]["loss"] == pytest.approx(2 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("way", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_compares_with_the_model_that_it_started_from(way, tmp_path, settings):
    own = {**settings, **WAYS[way], "epochs": 2, "save_steps": 2, "save_total_limit": 9}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer({**own, "output_dir": str(straight)}).train()
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    Trainer({**own, "output_dir": str(resumed), "resume_from_checkpoint": "latest"}).train()
    assert_same_run(straight, resumed, last="checkpoint-4", folders=("final",))


def test_a_start_that_was_changed_since_is_refused(tmp_path, settings, bert_folder):
    start = shutil.copytree(bert_folder, tmp_path / "start")
    own = {**settings, "model_name": str(start), "max_steps": 1}
    Trainer(own).train()
    model = VisualRetrievalModel.from_pretrained(str(start))
    with torch.no_grad():
        next(model.model.backbones()[""].parameters()).add_(0.1)
    model.save_pretrained(start)
    with pytest.raises(CheckpointError, match="compares with the model that it started from, and what is opened now"):
        Trainer(own).train(resume_from_checkpoint="latest", max_steps=2)


def test_a_row_without_negatives_is_refused_before_anything_is_written(tmp_path, settings, rows):
    del rows[3]["negatives"]
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"train\.jsonl:4: negatives: is missing; the loss needs explicit negatives"):
        Trainer(settings).train()
    assert not (tmp_path / "run").exists()


def test_the_estimate_of_memory_counts_the_copy(settings):
    parts = {
        way: Trainer(settings).overview(**changes).memory.parts
        for way, changes in {"full": {}, "lora": LORA, "without": {"loss_type": "triplet"}}.items()
    }
    assert parts["full"]["reference"] >= parts["full"]["gradients"]
    assert parts["lora"]["reference"] < 0.1 * parts["full"]["reference"]
    assert parts["without"]["reference"] == 0


@pytest.mark.parametrize(
    "changes", [{"freeze_layers": {"vision": 1}, "gradient_checkpointing": True}, {"freeze": ["vision"]}], ids=str
)
def test_frozen_layers_give_the_reference_what_they_give_the_model(changes, tmp_path, settings, timm_folder):
    """In a model without dropout, so that the loss starts at log 2 whatever is kept of frozen parts."""
    bert = tiny.tiny_bert(str(tmp_path / "bert"), pooling="mean")
    config = tmp_path / "bert" / "config.json"
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | none))
    data = write_pairs(tmp_path / "data", 12, "t2i", num_negatives=1)
    own = {key: value for key, value in settings.items() if key != "model_name"}
    own |= {"text_model_name": bert, "image_model_name": timm_folder, "data_path": data, "retrieval_mode": "t2i"}
    Trainer(own).train(epochs=4, learning_rate=1e-3, **changes)
    losses = [line["loss"] for line in lines_of(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < math.log(2) - 1e-3
