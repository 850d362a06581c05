"""`vembed evaluate` on a finished run, a config and a model; and the report of a run."""

import json
import shutil
from pathlib import Path, PurePath

import pytest

from tests.pictures import write_jsonl, write_pairs
from tests.runs import two_data_sets
from tests.tiny.saving import with_unreadable_token
from vembed.config import load_config
from vembed.data.dataset import load_datasets
from vembed.entrypoints.evaluate import evaluate
from vembed.entrypoints.evaluate_simple import evaluate_simple
from vembed.errors import DataError, ModelError, UsageError
from vembed.evaluation.evaluator import Evaluator
from vembed.evaluation.protocols import base_protocols
from vembed.evaluation.relevance import retrieval_set
from vembed.model.modeling import VisualRetrievalModel
from vembed.trainer import Trainer
from vembed.utils.lock import lock_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def settings(data, bert_folder, vit_folder):
    """A composed model on t2i and i2i, with test data."""
    test = [
        {"path": write_pairs(data / "test_t2i", 9, "t2i", seed=500), "retrieval_mode": "t2i"},
        {"path": write_pairs(data / "test_i2i", 7, "i2i", seed=600), "retrieval_mode": "i2i"},
    ]
    return {
        "text_model_name": bert_folder,
        "image_model_name": vit_folder,
        "projection_dim": 16,
        "data_path": two_data_sets(data / "train"),
        "test_data_path": test,
        "output_dir": str(data / "run"),
        "val_fraction": 0.2,
        "batch_size": 8,
        "epochs": 1,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "bootstrap_samples": 50,
        "gallery_size": 4,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def run(settings):
    """A finished run with its report."""
    return Trainer(settings).train().output_dir


def test_training_ends_with_a_report_of_base_and_tuned(run, settings):
    record = json.loads((run / "report" / "metrics.json").read_text())
    assert list(record["base"]) == list(record["tuned"]) == ["t2i", "i2i"]
    assert record["base"] != record["tuned"]
    assert record["meta"]["sets"]["i2i"]["measured_on"]["base"] == "the pretrained image tower's own features"
    assert record["meta"]["sets"]["t2i"]["measured_on"]["base"].startswith("untrained projection heads")
    assert record["meta"]["sets"]["t2i"]["role"] == "test"
    page = (run / "report" / "report.html").read_text()
    for part in ("Training loss", "Validation nDCG@10", "What learned", "argument", "Queries and what was found"):
        assert part in page


def test_tuned_figures_are_those_of_the_saved_model(run, settings):
    record = json.loads((run / "report" / "metrics.json").read_text())
    config = load_config(run / "config.yaml")
    sets = [retrieval_set(one, config.data) for one in load_datasets(config.data.test_data_path, config.data)]
    tuned = Evaluator(sets, config.evaluation).measure(VisualRetrievalModel.from_pretrained(str(run / "final")))
    assert record["tuned"] == tuned.metrics


def test_base_figures_are_those_of_the_model_that_training_began_with(run):
    record = json.loads((run / "report" / "metrics.json").read_text())
    config = load_config(run / "config.yaml")
    sets = [retrieval_set(one, config.data) for one in load_datasets(config.data.test_data_path, config.data)]
    untrained = VisualRetrievalModel.from_pretrained(None, config.model, seed=config.training.seed)
    assert record["base"] == Evaluator(sets, config.evaluation).measure(untrained, base_protocols).metrics


def test_evaluating_the_run_again_gives_the_same_report(run):
    before = {path.name: path.read_bytes() for path in (run / "report").iterdir()}
    evaluation = evaluate(run)
    assert {path.name: path.read_bytes() for path in (run / "report").iterdir()} == before
    assert evaluation.paths.html == run / "report" / "report.html"
    assert "nDCG@10 on t2i went from" in evaluation.text()
    assert evaluation.metrics == {key: json.loads(before["metrics.json"])[key] for key in ("base", "tuned")}


def test_a_run_measured_on_other_data_keeps_its_own_report(run, data):
    other = write_pairs(data / "other", 6, "t2i", seed=900)
    before = (run / "report" / "metrics.json").read_bytes()
    evaluation = evaluate(run, [f"test_data_path={other}", "eval_k=1,3", "best_metric=mrr"])
    assert evaluation.paths is None
    assert (run / "report" / "metrics.json").read_bytes() == before
    assert set(evaluation.metrics["tuned"]["t2i"]) >= {"recall@3", "mrr"}
    written = evaluate(run, {"test_data_path": other}, report_dir=data / "other_report")
    assert written.paths.metrics.is_file()


def test_without_test_data_the_validation_rows_are_measured_and_the_report_says_so(data, settings):
    plain = {key: value for key, value in settings.items() if key != "test_data_path"}
    run = Trainer({**plain, "output_dir": str(data / "val_run")}).train().output_dir
    record = json.loads((run / "report" / "metrics.json").read_text())
    split = json.loads((run / "split.json").read_text())
    sizes = {name: one["queries"] for name, one in record["meta"]["sets"].items()}
    assert sizes == {name: len(part["validation"]) for name, part in split["datasets"].items() if part["validation"]}
    assert {one["role"] for one in record["meta"]["sets"].values()} == {"validation"}
    assert "also chose the checkpoint" in (run / "report" / "report.html").read_text()
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line["eval"] for line in history if "eval" in line][-1]
    assert record["tuned"] == last  # one epoch: the last evaluation is the best, and of final/


def test_a_config_is_measured_untrained(data, settings):
    file = data / "untrained.yaml"
    load_config(None, {**settings, "output_dir": str(data / "never")}).to_yaml(file)
    evaluation = evaluate(file, report_dir=data / "untrained")
    assert list(evaluation.metrics) == ["base"]
    assert list(evaluation.metrics["base"]) == ["t2i", "i2i"]
    assert not (data / "never").exists()
    assert json.loads(evaluation.paths.metrics.read_text())["base"] == evaluation.metrics["base"]


def test_a_model_folder_is_measured_on_given_data(run, settings, data):
    test = settings["test_data_path"][0]["path"]
    evaluation = evaluate(run / "final", {"test_data_path": test, "retrieval_mode": "t2i"})
    assert list(evaluation.metrics) == ["model"]
    recorded = json.loads((run / "report" / "metrics.json").read_text())
    assert evaluation.metrics["model"]["t2i"] == recorded["tuned"]["t2i"]
    assert evaluation.paths is None


def test_evaluate_simple_gives_the_same_figures_in_one_call(run, settings):
    metrics = evaluate_simple(run / "final", settings["test_data_path"][1]["path"], "i2i")
    assert metrics == json.loads((run / "report" / "metrics.json").read_text())["tuned"]["i2i"]
    renamed = evaluate_simple(run / "final", settings["test_data_path"][1]["path"], "i2i", eval_k=(3,))
    assert set(renamed) == {"recall@3", "hit_rate@3", "ndcg@3", "mrr", "map"}


def test_a_run_that_has_not_finished_is_refused(run, tmp_path):
    for name in ("config.yaml", "run.json"):
        shutil.copy(run / name, tmp_path / name)
    with pytest.raises(UsageError, match="has no final/"):
        evaluate(tmp_path)


def test_a_model_without_data_is_refused(clip_folder):
    with pytest.raises(UsageError, match="--test_data_path"):
        evaluate(clip_folder)


def test_what_is_no_model_is_refused(tmp_path, data, settings):
    test = {"test_data_path": settings["test_data_path"][0]["path"]}
    with pytest.raises((ModelError, UsageError)):
        evaluate(tmp_path / "nothing", test)


def test_test_data_that_has_gone_is_refused(run, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    text = (moved / "config.yaml").read_text().replace("test_t2i", "gone")
    (moved / "config.yaml").write_text(text)
    with pytest.raises(DataError, match="gone"):
        evaluate(moved)
    assert Path(moved / "report" / "metrics.json").is_file()


def test_a_text_that_the_model_has_no_embedding_of_is_passed_over_before_and_after_training(tmp_path, bert_folder):
    number = with_unreadable_token(bert_folder, tmp_path / "model")
    unreadable = f"a <soft_{number}> shoe"
    rows = [{"query": f"shoe {one}", "positive": [f"a shoe of size {one}"]} for one in range(16)]
    held_out = [{"query": f"hat {one}", "positive": [f"a hat of size {one}"]} for one in range(8)]
    for some in (rows, held_out):
        some[1]["positive"].append(unreadable)
        some[2]["query"] = unreadable
    settings = {
        "model_name": str(tmp_path / "model"),
        "data_path": write_jsonl(tmp_path / "rows.jsonl", rows),
        "test_data_path": write_jsonl(tmp_path / "test.jsonl", held_out),
        "retrieval_mode": "t2t",
        "val_fraction": 0.25,
        "on_bad_sample": "skip",
        "max_bad_fraction": 0.5,
        "batch_size": 8,
        "max_steps": 2,
        "bootstrap_samples": 10,
        "device": "cpu",
    }
    trained = Trainer({**settings, "output_dir": str(tmp_path / "run")}).train()
    record = json.loads((trained.output_dir / "report" / "metrics.json").read_text())
    listed = record["meta"]["sets"]["t2t"]["bad_samples"]
    assert [PurePath(line["origin"]).name for line in listed] == ["test.jsonl:3", "test.jsonl:2"]
    assert all(f"<soft_{number}>" in line["reason"] for line in listed)
    del settings["data_path"]
    (tmp_path / "untuned.yaml").write_text(json.dumps(settings))  # JSON is YAML
    assert evaluate(tmp_path / "untuned.yaml").metrics["base"] == record["base"]


def test_a_report_that_is_a_link_out_of_the_run_is_not_followed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    others = tmp_path / "others"
    others.mkdir()
    (others / "report.md").write_text("mine")
    for target in (others, copy / "report"):
        shutil.rmtree(copy / "report") if not (copy / "report").is_symlink() else (copy / "report").unlink()
        (copy / "report").symlink_to(target)
        with pytest.raises(UsageError, match="is a link that leads out of the run's folder"):
            evaluate(copy)
        assert (others / "report.md").read_text() == "mine"


def test_no_report_is_written_into_a_run_that_another_process_has(run, tmp_path):
    living = tmp_path / "living"
    living.mkdir()
    (living / "run.json").write_text("{}")
    for folder in (living, living / "report"):
        with lock_folder(living, "it", "wait"), pytest.raises(UsageError, match="writes there"):
            evaluate(run, report_dir=folder)
