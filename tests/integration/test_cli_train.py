"""The command line trains, looks ahead, measures, evaluates and encodes without a YAML file."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.pictures import write_pairs, write_picture
from vembed.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs `vembed` with words, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def words(clip_folder, tmp_path):
    """The words that say what to train: a tiny CLIP on twenty pairs."""
    data = write_pairs(tmp_path / "data", 20, "t2i")
    settings = [
        "--model_name",
        clip_folder,
        "--data_path",
        data,
        "--val_fraction=0.2",
        "batch_size=8",
        "--device",
        "cpu",
    ]
    return [*settings, "--max_steps", "2", "--bootstrap_samples=10"]


def test_a_dry_run_shows_the_config_the_model_and_the_steps_and_writes_nothing(run, words, tmp_path):
    result = run("train", *words, "--dry_run")
    assert result.exit_code == 0, result.output
    assert " batch_size 8 command line" in " ".join(result.stdout.split())
    assert "preset clip (detected)" in result.stdout
    assert "2 in all" in result.stdout
    assert "peak memory" in result.stdout
    assert not (tmp_path / "output").exists()


def test_measuring_prints_memory_and_speed_and_writes_nothing(run, words, tmp_path):
    result = run("train", *words, "--measure", "1")
    assert result.exit_code == 0, result.output
    assert "samples per second" in result.stdout
    assert "\nlimit " in result.stdout
    assert not (tmp_path / "output").exists()


def test_training_and_evaluation_leave_a_model_and_a_report(run, words, tmp_path):
    trained = run("train", *words, "--no-report")
    assert trained.exit_code == 0, trained.output
    assert "output/final" in trained.stdout
    again = run("train", *words)
    assert again.exit_code == 2
    assert "already holds a run" in again.stderr
    resolved = run("config", "show", "output/config.yaml")
    assert "output/config.yaml:" in resolved.stdout
    measured = run("evaluate", "output", "--output_dir", "figures")
    assert measured.exit_code == 0, measured.output
    assert "figures/report.html" in measured.stdout
    assert json.loads((tmp_path / "figures" / "metrics.json").read_text()).keys() >= {"base", "tuned"}


def test_encoding_a_folder_writes_vectors_with_their_ids(run, clip_folder, tmp_path):
    for number in range(3):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    result = run(
        "encode", clip_folder, "--input", "photos", "--output", "photos.npz", "--batch_size", "2", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "photos.npz") as saved:
        assert saved["ids"].tolist() == ["0.png", "1.png", "2.png"]
        assert result.stdout == f"3 vectors of {saved['vectors'].shape[1]} numbers in photos.npz\n"
    wrong = run("encode", clip_folder, "--input", "photos", "--output", "photos.npz", "--side", "both")
    assert (wrong.exit_code, wrong.stderr) == (2, "Error: --side 'both' is unknown; known are: query, document\n")
