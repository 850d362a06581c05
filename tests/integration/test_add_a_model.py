"""docs/add-a-model.md is true: its file, as it stands there, brings a family that trains."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import ConvNextImageProcessor, RegNetConfig, RegNetModel

from tests.pictures import write_jsonl, write_picture
from tests.tiny.saving import save

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "add-a-model.md"
ROOT = DOCUMENT.parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's folder: the document's file, a RegNet, pictures, and a YAML that names them."""
    folder = tmp_path_factory.mktemp("project")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "regnet_family.py").write_text(code)
    config = RegNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], groups_width=4)
    save(RegNetModel, config, folder / "regnet", seed=0)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder / "regnet")
    for number in range(12):
        write_picture(folder / f"{number}.png", number)
    rows = [{"query": f"{number}.png", "positive": f"{number + 1}.png"} for number in range(0, 12, 2)]
    write_jsonl(folder / "pairs.jsonl", rows)
    (folder / "my.yaml").write_text(
        "plugins: [regnet_family]\nmodel_name: regnet\nimage_size: 32\ndata_path: pairs.jsonl\nretrieval_mode: i2i\n"
        "val_fraction: 0.0\nbatch_size: 3\ngradient_cache_chunk_size: 2\nmax_steps: 2\noutput_dir: run\ndevice: cpu\n"
    )
    return folder


def vembed(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vembed", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_family_from_outside_trains_and_its_checkpoint_opens(project):
    trained = vembed(project, "train", "my.yaml")
    assert trained.returncode == 0, trained.stderr
    checked = vembed(project, "models", "--plugins", "regnet_family", "--check", "run/final")
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^embedding +20 numbers per item$", checked.stdout, re.MULTILINE)
    assert "one vector of 20 numbers, length 1.0000" in checked.stdout
    listed = vembed(project, "models", "--plugins", "regnet_family")
    assert "\nregnet  (preset dino)\n" in listed.stdout


@pytest.mark.slow
def test_without_the_plugin_the_model_is_refused_by_name(project):
    unknown = vembed(project, "models", "--check", "regnet")
    assert unknown.returncode == 2
    assert "models of type 'regnet' are not supported" in unknown.stderr


@pytest.mark.slow
def test_a_checkpoint_asks_for_the_plugin_that_brings_its_family(project):
    (project / "saved").mkdir()
    spec = {"family": "regnet", "preset": "dino", "towers": ["vision"], "pooling": {"vision": "own"}}
    (project / "saved" / "vembed_config.json").write_text(json.dumps({"version": "0", "spec": spec}))
    unknown = vembed(project, "models", "--check", "saved")
    assert unknown.returncode == 2
    assert "of family 'regnet', which is not known here" in unknown.stderr
    assert "name the module that registers it in plugins" in unknown.stderr
