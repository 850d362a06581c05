"""A whole run on generated pictures: what it writes, that it learns, and what it refuses."""

import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.pictures import write_jsonl, write_pairs
from tests.runs import finish, read_bytes, read_lines, start_training, two_data_sets
from tests.tiny import tiny_clip
from vembed.config import load_config
from vembed.entrypoints.train import summary
from vembed.errors import ConfigError, DataError, ModelError, UsageError, VembedError
from vembed.inference import Predictor
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_data_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(tmp_path, clip_folder, data):
    """A short run over two data sets."""
    return {
        "model_name": clip_folder,
        "data_path": data,
        "output_dir": str(tmp_path / "run"),
        "val_fraction": 0.2,
        "batch_size": 8,
        "epochs": 2,
        "logging_steps": 1,
        "gradient_cache_chunk_size": 3,
        "learning_rate": 1e-3,
        "report": False,
        "device": "cpu",
    }


def test_a_run_leaves_a_folder_with_everything(tmp_path, settings, data, caplog):
    caplog.set_level("INFO")
    result = Trainer(settings).train()
    told = [text for text in caplog.messages if "evaluation of" in text or "best so far" in text]
    assert "best so far" not in told[0]  # first the figures, then what they say
    assert "step 3 is the best so far" in told[2]
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "run.json", "split.json", "metrics.jsonl", "best", "final", "checkpoint-3", "checkpoint-6")
    }
    assert (result.output_dir, result.final, result.num_steps) == (run, run / "final", 6)
    steps = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in steps] == [0.3333, 0.6667, 1.0, 1.3333, 1.6667, 2.0]
    assert {"loss", "learning_rate", "temperature", "grad_norm", "samples"} <= steps[0].keys()
    assert steps[-1]["learning_rates"].keys() == {"text", "vision", "scale"}
    evaluations = [line for line in read_lines(run / "metrics.jsonl") if "eval" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    assert evaluations[0]["eval"].keys() == {"t2i", "i2i"}
    means = {line["step"]: sum(one["ndcg@10"] for one in line["eval"].values()) / 2 for line in evaluations}
    assert result.best is not None
    last_of_best = max(means, key=lambda step: (means[step], step))  # of equal ones the later
    assert (result.best.step, result.best.value) == (last_of_best, max(means.values()))
    record = json.loads((run / "run.json").read_text())
    held_out = json.loads((run / "split.json").read_text())["datasets"]
    assert sum(len(one["validation"]) for one in held_out.values()) == pytest.approx(0.2 * 24, abs=1)
    rows = {one["name"]: one["num_rows"] for one in record["data"]["train"]}
    assert rows == {name: one["num_rows"] - len(one["validation"]) for name, one in held_out.items()}
    assert record["versions"]["torch"] == torch.__version__


def test_the_written_config_is_the_run_and_can_be_used_to_continue(tmp_path, settings):
    config = Trainer(settings).config()
    Trainer(settings).train()
    written = load_config(tmp_path / "run" / "config.yaml")
    assert written.to_flat() == config.to_flat()
    again = Trainer(tmp_path / "run" / "config.yaml").train(resume_from_checkpoint="latest", epochs=3)
    assert again.num_steps == 9


def test_final_is_the_best_and_embeds_as_the_model_in_training_did(tmp_path, settings):
    Trainer(settings).train()
    run = tmp_path / "run"
    assert read_bytes(run / "final") == read_bytes(run / "best")
    texts = ["a red circle", "two blue squares"]
    tuned = Predictor(run / "final", "cpu").encode_text(texts, output="torch")
    best = json.loads((run / "best" / "vembed_config.json").read_text())["step"]
    checkpoint = VisualRetrievalModel.from_pretrained(str(run / f"checkpoint-{best}"))
    torch.testing.assert_close(tuned, checkpoint.get_text_features(texts), rtol=0, atol=1e-6)
    base = VisualRetrievalModel.from_pretrained(settings["model_name"])
    assert (tuned - base.get_text_features(texts)).abs().max() > 1e-3


def test_without_validation_final_is_the_last_step(tmp_path, settings):
    result = Trainer(settings).train(val_fraction=0.0, max_steps=3)
    run = tmp_path / "run"
    assert result.best is None
    assert load_config(run / "config.yaml").data.val_fraction == 0
    assert not (run / "best").exists()
    assert not (run / "split.json").exists()
    final, last = read_bytes(run / "final"), read_bytes(run / "checkpoint-3")
    assert {name for name in last if name not in final} == {"training_state.json", "training_state.safetensors"}
    assert all(final[name] == last[name] for name in final)


def test_the_model_learns_what_the_data_say(tmp_path, settings):
    pairs = write_pairs(tmp_path / "pairs", 16)
    del settings["val_fraction"]
    longer = {"epochs": 80, "learning_rate": 5e-3, "eval_steps": 80, "save_steps": 80}
    Trainer(settings).train(data_path=pairs, val_data_path=pairs, batch_size=16, gradient_cache_chunk_size=16, **longer)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > 2
    assert losses[-1] < 0.5
    assert lines[-1]["eval"]["t2i"]["recall@1"] >= 0.8


def test_the_same_seed_gives_the_same_run_to_the_bit(tmp_path, settings, bert_folder, vit_folder):
    del settings["model_name"]
    towers = {"text_model_name": bert_folder, "image_model_name": vit_folder}  # with dropout
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Trainer({**settings, **towers}).train(output_dir=str(tmp_path / name), augment="strong", seed=seed)
    a, b, c = (read_bytes(tmp_path / name / "final") for name in "abc")
    assert a == b
    assert a["text/model.safetensors"] != c["text/model.safetensors"]
    assert read_lines(tmp_path / "a" / "metrics.jsonl") == read_lines(tmp_path / "b" / "metrics.jsonl")


def test_evaluating_more_often_changes_nothing_else(tmp_path, settings, bert_folder, vit_folder):
    model = {"model_name": None, "text_model_name": bert_folder, "image_model_name": vit_folder}  # with dropout
    for name, eval_steps in (("seldom", 100), ("often", 1)):
        Trainer({**settings, **model}).train(output_dir=str(tmp_path / name), eval_steps=eval_steps)
    seldom, often = (read_bytes(tmp_path / name / "checkpoint-6") for name in ("seldom", "often"))
    assert seldom["training_state.safetensors"] == often["training_state.safetensors"]


def test_checkpoints_rotate(tmp_path, settings):
    Trainer(settings).train(max_steps=5, save_steps=1, save_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_bf16_keeps_parameters_in_float32(tmp_path, settings):
    Trainer(settings).train(mixed_precision="bf16", max_steps=2)
    assert all(abs(line["loss"]) < 20 for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line)
    weights = Trainer(settings).config().model
    assert weights.model_name is not None
    tuned = VisualRetrievalModel.from_pretrained(str(tmp_path / "run" / "final")).model
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.float32}


def test_frozen_weights_may_be_bf16_and_final_is_the_best_adapter_merged(tmp_path, settings):
    run = tmp_path / "run"
    Trainer(settings).train(torch_dtype="bfloat16", use_lora=True, use_dora=True, max_steps=4, eval_steps=2)
    assert {path.name for path in (run / "best").iterdir()} >= {"adapter_model.safetensors", "vembed_base.json"}
    assert len(list(run.glob("checkpoint-*/adapter_model.safetensors"))) == 2
    assert (run / "final" / "model.safetensors").is_file()
    best, final = Predictor(run / "best"), Predictor(run / "final")
    texts = ["a red circle", "two blue squares"]
    written = load_file(run / "final" / "model.safetensors")
    assert {tensor.dtype for name, tensor in written.items() if name != "logit_scale"} == {torch.bfloat16}
    cosines = (np.array(best.encode_text(texts)) * np.array(final.encode_text(texts))).sum(axis=1)
    assert cosines.min() > 0.999
    records = [json.loads((run / name / "vembed_config.json").read_text()) for name in ("best", "final")]
    assert "weights" in records[0]  # a checksum of the adapters, which the merged model has no more
    of_files = ("weights", "checksum")
    assert [{key: value for key, value in one.items() if key not in of_files} for one in records] == [
        {key: value for key, value in records[1].items() if key not in of_files}
    ] * 2


def test_adapters_of_a_base_in_pickles_are_merged_reported_and_opened(tmp_path, settings):
    folder = Path(tiny_clip(tmp_path / "clip"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    run = tmp_path / "run"
    result = Trainer({**settings, "model_name": str(folder)}).train(
        use_lora=True, allow_pickled_weights=True, max_steps=2, report=True
    )
    assert result.report is not None
    best = Predictor(run / "best", settings=ModelSettings(allow_pickled_weights=True))
    final = Predictor(run / "final")
    assert np.allclose(best.encode_text("a red circle"), final.encode_text("a red circle"), atol=1e-6)


def test_a_run_of_adapters_may_leave_them_alone(tmp_path, settings):
    Trainer(settings).train(use_lora=True, save_adapter_only=True, max_steps=2)
    assert read_bytes(tmp_path / "run" / "final") == read_bytes(tmp_path / "run" / "best")
    assert Predictor(tmp_path / "run" / "final")
    second = {**settings, "model_name": str(tmp_path / "run" / "final"), "output_dir": str(tmp_path / "second")}
    Trainer(second).train(use_lora=True, max_steps=2)
    assert (tmp_path / "second" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch_dtype": "bfloat16"}, "torch_dtype: bfloat16 would have no effect"),
        ({"torch_dtype": "float16", "use_lora": True}, "gradients that pass through float16 weights vanish"),
    ],
)
def test_a_dtype_in_which_nothing_would_learn_is_refused(tmp_path, settings, change, words):
    with pytest.raises(ConfigError, match=words):
        Trainer(settings).train(**change)
    assert not (tmp_path / "run").exists()


def test_global_batch_size_is_shared_by_accumulation(tmp_path, settings):
    del settings["batch_size"]
    Trainer(settings).train(global_batch_size=6, gradient_accumulation_steps=3, max_steps=2, val_fraction=0.0)
    assert [line["samples"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == [6, 12]


def test_bad_rows_are_passed_over_and_listed(tmp_path, settings, data):
    good = Path(data[0]["path"])
    path = write_jsonl(tmp_path / "broken.jsonl", [*good.read_text().splitlines(), {"query": "no positive"}])
    broken = Trainer({**settings, "data_path": path, "image_root": str(good.parent), "val_fraction": 0.0})
    with pytest.raises(DataError, match=r"1 of 15 rows cannot be used:\n.*broken.jsonl:15: positive"):
        broken.train()
    assert not (tmp_path / "run").exists()
    broken.train(on_bad_sample="skip", max_bad_fraction=0.1)
    (line,) = read_lines(tmp_path / "run" / "bad_samples.jsonl")
    assert line["origin"].endswith("broken.jsonl:15")
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["samples"] for line in lines] == [8, 15, 23, 30]  # every batch is full


def test_data_refused_before_the_first_step_leaves_the_output_dir_free(tmp_path, settings):
    path = Path(write_pairs(tmp_path / "data", 14))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    pictures = sorted(path.parent.rglob("*.png"))
    whole = {picture: picture.read_bytes() for picture in pictures}
    for picture in pictures:
        picture.write_bytes(whole[picture][:60])
    broken = {**settings, "data_path": str(path), "val_fraction": 0, "max_steps": 1}
    with pytest.raises(DataError, match=r"pairs.jsonl:\d+"):
        Trainer(broken).train()
    assert [left.name for left in (tmp_path / "run").iterdir()] == ["notes.txt"]
    for picture in pictures:
        picture.write_bytes(whole[picture])
    assert Trainer(broken).train().num_steps == 1


def test_an_output_dir_with_a_run_is_refused_and_left_alone(tmp_path, settings):
    Trainer(settings).train(max_steps=1)
    before = read_bytes(tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a run"):
        Trainer(settings).train(seed=5)
    assert read_bytes(tmp_path / "run") == before
    Trainer(settings).train(seed=5, max_steps=1, overwrite_output_dir=True)
    assert read_bytes(tmp_path / "run")["final/model.safetensors"] != before["final/model.safetensors"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_name": "no/such/folder"}, VembedError, "no/such/folder"),
        ({"data_path": "missing.jsonl"}, ConfigError, "missing.jsonl"),
        ({"learning_rate": 0}, ConfigError, "nothing would learn"),
        ({"resume_from_checkpoint": "latest"}, UsageError, "holds no checkpoint"),
        ({"mixed_precision": "fp16"}, ConfigError, "fp16 needs a CUDA device"),
        ({"learning_rates": {"heads": 1e-3}}, ConfigError, "no part 'heads'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, settings, change, error, words):
    with pytest.raises(error, match=words):
        Trainer(settings).train(**change)
    assert not (tmp_path / "run").exists()


def test_a_set_of_which_nothing_could_learn_is_refused(tmp_path, settings):
    words = r"data set i2i \(i2i\) teaches nothing: its vision tower is frozen"
    with pytest.raises(ConfigError, match=words):
        Trainer(settings).train(freeze=["vision"])
    with pytest.raises(ConfigError, match=words):
        Trainer(settings).train(learning_rates={"vision": 0})
    assert not (tmp_path / "run").exists()


def test_overwriting_does_not_delete_what_the_new_run_reads(tmp_path, settings):
    Trainer(settings).train(max_steps=1)
    before = read_bytes(tmp_path / "run")
    with pytest.raises(UsageError, match=r"would delete .*/run/final, which the new run reads"):
        Trainer(settings).train(model_name=str(tmp_path / "run" / "final"), overwrite_output_dir=True)
    assert read_bytes(tmp_path / "run") == before


def test_an_output_dir_that_cannot_be_made_is_refused(tmp_path, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        Trainer(settings).train(output_dir=str(tmp_path / "file" / "run"))


def test_a_mode_that_the_model_cannot_take_is_refused(tmp_path, settings, bert_folder):
    with pytest.raises(ModelError, match="texts only"):
        Trainer(settings).train(model_name=bert_folder, overwrite_output_dir=True)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tmp_path, settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="trains in one process"):
        Trainer(settings).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, settings):
    """A real limit on the size of files, in a real process, as `ulimit -f` sets it."""
    Trainer(settings).train(max_steps=1)
    run = tmp_path / "run"
    kept = {name: content for name, content in read_bytes(run).items() if name.startswith("checkpoint-1/")}

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    again = {**settings, "max_steps": 3, "resume_from_checkpoint": "latest", "val_fraction": 0.2}
    code, output = finish(start_training(again, preexec_fn=limit_files))
    assert code == 1, output
    # The first that is refused: best/, if step 3 is as good as step 1, else the checkpoint.
    assert re.search(rf"Error: {run}/(best|checkpoint-3) could not be written", output), output
    assert "Traceback" not in output, output
    left = read_bytes(run)
    assert {name: left[name] for name in left if name.startswith("checkpoint-")} == kept
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    assert Trainer(again).train().num_steps == 3


def test_the_report_measures_base_and_tuned_on_the_test_data(tmp_path, settings):
    test = write_pairs(tmp_path / "test", 6, seed=500)
    result = Trainer(settings).train(report=True, test_data_path=test, bootstrap_samples=20)
    run = tmp_path / "run"
    assert result.metrics.keys() == {"base", "tuned"}
    assert result.metrics["tuned"].keys() == {"t2i"}
    assert json.loads((run / "report" / "metrics.json").read_text())["tuned"] == result.metrics["tuned"]
    assert result.report is not None
    assert result.report.role == "test"
    assert result.report.paths is not None
    assert result.report.paths.html == run / "report" / "report.html"
    assert "report" in summary(result)


def test_a_dry_run_tells_everything_and_writes_nothing(tmp_path, settings):
    overview = Trainer(settings).overview(learning_rates={"text": 0}, layer_decay=0.5)
    text = "\n".join(overview.lines())
    assert "clip (config.json says clip" in text
    assert overview.model.num_trainable == sum(group.num_parameters for group in overview.groups)
    assert overview.model.frozen == ["text"]
    train, validation = overview.rows["train"], overview.rows["validation"]
    assert {name: train[name] + validation[name] for name in train} == {"t2i": 14, "i2i": 10}
    assert (overview.plan.steps_per_epoch, overview.plan.num_steps, overview.warmup_steps) == (3, 6, 1)
    for documents in (3, 6):  # one data set has a negative per row
        assert f"chunks         a batch of 8 rows is 3 chunks of queries and {documents} of documents" in text
    assert {group.layer for group in overview.groups if group.part == "vision"} == {0, 1, 2}
    assert overview.memory.total_mib > 50
    assert not (tmp_path / "run").exists()


def test_measuring_counts_steps_and_writes_nothing(tmp_path, settings):
    measurement = Trainer(settings).measure(4)
    assert (measurement.num_steps, measurement.steps_per_epoch) == (4, 3)
    assert measurement.num_samples == pytest.approx(4 * 19 / 3, abs=6)
    assert measurement.seconds > 0
    assert measurement.peak_memory_mib > 50
    assert measurement.bottleneck in ("loader", "model")
    assert len(measurement.lines()) == 6
    assert not (tmp_path / "run").exists()
