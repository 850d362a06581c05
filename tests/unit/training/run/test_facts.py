"""What a report says of a run comes from the run's own files."""

import json

import pytest

from vembed.config import load_config
from vembed.errors import CheckpointError
from vembed.training.run.facts import read_run_facts, setting_lines
from vembed.training.run.folder import RunFolder

RECORD = {
    "started": "2026-11-23T19:33:13+00:00",
    "versions": {"vembed": "0.1.0", "torch": "2.15.0"},
    "data": {
        "train": [
            {"name": "pairs", "mode": "t2i", "num_rows": 1434, "num_groups": 200}
            | {"query_characters": {"median": 11, "p95": 24, "max": 40}, "document_characters": None},
        ],
        "validation": [],
        "test": [
            {"name": "i2i", "mode": "i2i", "num_rows": 281, "num_groups": 0}
            | {"query_characters": None, "document_characters": None},
        ],
    },
    "groups": [
        {"part": "vision", "pretrained": True, "num_parameters": 1000, "learning_rate": 1e-5, "weight_decay": 0.01},
        {"part": "vision", "pretrained": True, "num_parameters": 500, "learning_rate": 2e-5, "weight_decay": 0.0},
        {"part": "heads", "pretrained": False, "num_parameters": 10, "learning_rate": 1e-3, "weight_decay": 0.01},
    ],
    "plan": {"num_steps": 60, "batch_size": 96, "steps_per_epoch": 30, "num_batches_per_step": 1},
    "device": "cpu",
    "mixed_precision": "no",
}
SAVED = {"step": 30, "seed": 42, "loss": "infonce", "best": {"metric": "ndcg@10", "value": 0.4548}}
LINES = [
    {
        "step": 30,
        "loss": 2.0,
        "samples": 2880,
        "samples_per_second": 48.0,
        "peak_memory_mib": 900,
        "truncated_texts": 1,
    },
    {"step": 30, "eval": {"t2i": {"ndcg@10": 0.45}}},
    {
        "step": 60,
        "loss": 1.0,
        "samples": 5760,
        "samples_per_second": 24.0,
        "peak_memory_mib": 1900,
        "truncated_texts": 3,
    },
]


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.final.mkdir()
    folder.record.write_text(json.dumps(RECORD))
    (folder.final / "vembed_config.json").write_text(json.dumps(SAVED))
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    folder.bad_samples.write_text('{"origin": "a", "reason": "b"}\n')
    return folder


def test_the_facts_of_a_run(run):
    facts = read_run_facts(run)
    tables = {table.title: [tuple(row) for row in table.rows] for table in facts.tables}
    assert facts.summary == "Tuned on 1,434 rows of pairs in 60 steps, 3 min 0 s."
    assert tables["Data"] == [
        ("pairs", "train", "text → image", "1,434", "200", "11, 40"),
        ("i2i", "test", "image → image", "281", "0", ""),
    ]
    assert tables["What learned"] == [
        ("vision, pretrained", "1,500", "1e-05 … 2e-05", "0 … 0.01"),
        ("heads, new", "10", "0.001", "0.01"),
    ]
    run_rows = dict(tables["Run"])
    assert run_rows["weights kept"] == "step 30: nDCG@10 45.5 % on the validation sets"
    assert run_rows["steps"] == "60 of 96 rows (30 per epoch)"
    assert run_rows["peak memory"] == "1,900 MiB"
    assert run_rows["texts cut to the model's limit"].startswith("3 ")
    assert run_rows["rows skipped as unusable"] == "1"
    assert len(facts.history) == 3
    assert facts.meta == {"step": 30, "seed": 42, "versions": RECORD["versions"]}


def test_a_run_without_validation_kept_its_last_weights(run):
    (run.final / "vembed_config.json").write_text(json.dumps({**SAVED, "step": 60, "best": None}))
    rows = {row[0]: row[1] for table in read_run_facts(run).tables if table.title == "Run" for row in table.rows}
    assert rows["weights kept"] == "step 60, the last"


def test_a_damaged_folder_is_named(run):
    run.record.write_text("{")
    with pytest.raises(CheckpointError, match="not the folder of a finished run"):
        read_run_facts(run)


def test_setting_lines_are_those_of_the_resolved_config():
    config = load_config(None, ["--batch_size", "64", "preset=none"])
    lines = {line.key: line for line in setting_lines(config.yaml_text())}
    assert set(lines) == set(config.to_flat())
    assert (lines["batch_size"].value, lines["batch_size"].origin) == ("64", "command line")
    assert (lines["epochs"].section, lines["epochs"].origin) == ("training", "default")
