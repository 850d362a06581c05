"""A run on queries of picture and text, from rows to report: it learns, and is compared with the base at its best."""

import json

import pytest

from tests.pictures import write_jsonl, write_pairs, write_picture
from vembed.entrypoints.evaluate import evaluate
from vembed.errors import ConfigError
from vembed.trainer import Trainer

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eight pictures, each of which becomes three others; its own picture and the other two are negatives."""
    folder = tmp_path_factory.mktemp("changes")
    for number in range(32):
        write_picture(folder / f"{number}.png", number)
    made = []
    for base in range(8):
        targets = [f"{8 + 3 * base + way}.png" for way in range(3)]
        for colour, target in zip(COLOURS, targets, strict=True):
            others = [f"{base}.png", *(other for other in targets if other != target)]
            query = {"text": f"the same in {colour}", "image": f"{base}.png"}
            made.append({"query": query, "positive": target, "negatives": others})
    return write_jsonl(folder / "rows.jsonl", made)


@pytest.fixture(scope="module")
def result(rows, bert_folder, vit_folder, tmp_path_factory):
    return Trainer(
        text_model_name=bert_folder,
        image_model_name=vit_folder,
        fusion="gated",
        retrieval_mode="m2i",
        data_path=rows,
        val_fraction=0,
        test_data_path=rows,
        batch_size=24,
        save_steps=1000,
        gradient_cache_chunk_size=16,
        epochs=60,
        learning_rate=5e-3,
        head_learning_rate=1e-2,
        bootstrap_samples=20,
        gallery_size=3,
        output_dir=str(tmp_path_factory.mktemp("run") / "out"),
    ).train()


@pytest.mark.slow
def test_a_composed_model_learns_changes_and_the_report_lists_every_row(result):
    base, tuned = result.metrics["base"]["m2i"], result.metrics["tuned"]["m2i"]
    assert tuned["recall@1"] > base["recall@1"] + 0.2
    record = json.loads(result.report.paths.metrics.read_text())
    rows = record["rows"]["m2i"]
    assert [(row["model"], row["query"], row["query_image"]) for row in rows] == [
        ("base", part, gallery) for gallery in ("in", "out") for part in ("image", "text", "whole")
    ] + [("tuned", "whole", "in"), ("tuned", "whole", "out")]
    assert record["base"]["m2i"]["ndcg@10"] == max(row["metrics"]["ndcg@10"] for row in rows if row["model"] == "base")
    assert record["meta"]["sets"]["m2i"]["groups"] == 8


@pytest.mark.slow
def test_evaluating_again_without_the_query_picture_counts_the_other_row(result):
    rows = json.loads(result.report.paths.metrics.read_text())["rows"]["m2i"]
    evaluation = evaluate(result.output_dir, ["--exclude_query_image=true"])
    assert evaluation.metrics["tuned"]["m2i"] == rows[-1]["metrics"]
    assert "without the query's picture" in evaluation.text()


def test_a_second_stage_adds_another_fusion_to_a_run_that_has_none(rows, bert_folder, vit_folder, tmp_path):
    settings = {"retrieval_mode": "m2i", "data_path": rows, "val_fraction": 0, "max_steps": 2, "batch_size": 12}
    first = Trainer(
        text_model_name=bert_folder, image_model_name=vit_folder, output_dir=str(tmp_path / "one"), **settings
    ).train()
    second = Trainer(str(first.final), fusion="attention", output_dir=str(tmp_path / "two"), **settings).train()
    saved = json.loads((second.final / "vembed_config.json").read_text())
    assert saved["spec"]["fusion"] == "attention"
    learned = json.loads((second.output_dir / "run.json").read_text())["groups"]
    assert {group["pretrained"] for group in learned if group["part"] == "heads"} == {True, False}


def test_a_fusion_that_no_training_set_teaches_is_refused(clip_folder, tmp_path):
    settings = {"data_path": write_pairs(tmp_path, 6, "t2i"), "val_fraction": 0, "output_dir": str(tmp_path / "out")}
    with pytest.raises(
        ConfigError, match=r"fusion: mlp would stay the sum .* no training set has rows of text and image"
    ):
        Trainer(clip_folder, fusion="mlp", **settings).train()


def test_frozen_towers_learn_nothing_from_rows_that_pass_no_fusion(clip_folder, tmp_path):
    plain, both = write_pairs(tmp_path / "plain", 6, "t2i"), write_pairs(tmp_path / "both", 6, "m2i")
    entries = [{"path": both, "retrieval_mode": "m2i"}, {"path": plain, "retrieval_mode": "t2i"}]
    settings = {"fusion": "gated", "freeze": ["text", "vision"], "val_fraction": 0, "batch_size": 4, "max_steps": 2}
    with pytest.raises(
        ConfigError, match=r"data set t2i \(t2i\) teaches nothing: its text and vision towers are frozen"
    ):
        Trainer(clip_folder, data_path=entries, output_dir=str(tmp_path / "out"), **settings).train()
    Trainer(clip_folder, data_path=entries[:1], output_dir=str(tmp_path / "out"), **settings).train()
