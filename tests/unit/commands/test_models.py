"""`vembed models` says what is known without torch, and `--check` shows a real model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.tiny import tiny_bert
from vembed.cli import app
from vembed.configuration.layers import preset_names
from vembed.model.families.registry import families


def run(*words: str):
    return CliRunner().invoke(app, ["models", *words])


def test_every_family_is_listed_with_its_names():
    listed = run()
    assert listed.exit_code == 0
    assert len(families()) >= 5
    for family in families():
        block = listed.stdout.split(f"\n{family.name}  (preset {family.preset})\n")[1].split("\n\n")[0]
        words = " ".join(block.split())
        assert all(name in words for name in (*family.aliases, *family.architectures, *family.keys))
        assert all(f"{name} = {target}" in words for name, target in family.model_names.items())
        assert all(len(line) <= 100 for line in block.splitlines())


def test_every_family_s_preset_exists():
    assert {family.preset for family in families()} <= set(preset_names())


def test_the_listing_imports_no_heavy_library():
    code = (
        "import sys; from vembed.entrypoints.models import listing; listing(); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_check_shows_the_spec_and_embeds(clip_folder):
    checked = run("--check", clip_folder)
    assert checked.exit_code == 0
    assert re.search(r"^known by +config\.json says clip", checked.stdout, re.MULTILINE)
    assert "one vector of 16 numbers, length 1.0000" in checked.stdout
    assert "their score: " in checked.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--check", "nowhere/at/all"), "there is no model folder"),
        (("--encoder_mode", "clip"), "name one with --check"),
        (
            ("--torch_dtype", "auto", "--allow_pickled_weights"),
            "--torch_dtype and --allow_pickled_weights can only say",
        ),
        (("--check", "nowhere", "--torch_dtype", "int8"), "--torch_dtype 'int8' is unknown"),
        (("--plugins", "no_such_module"), "no_such_module cannot be imported"),
    ],
)
def test_mistakes_are_told_with_exit_code_2(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_check_reads_pickles_where_that_is_allowed_and_holds_the_dtype_that_is_asked_for(tmp_path):
    folder = Path(tiny_bert(tmp_path / "bert", pooling="mean"))
    exact = run("--check", str(folder)).stdout.splitlines()[-1]
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "allow_pickled_weights" in run("--check", str(folder)).stderr
    checked = run("--check", str(folder), "--allow_pickled_weights")
    assert checked.stdout.splitlines()[-1] == exact
    low = run("--check", str(folder), "--allow_pickled_weights", "--torch_dtype", "bfloat16")
    assert low.exit_code == 0
    assert low.stdout.splitlines()[-1] != exact


def test_an_encoder_mode_that_does_not_fit_is_refused(clip_folder):
    result = run("--check", clip_folder, "--encoder_mode", "bert")
    assert result.exit_code == 2
    assert "encoder_mode 'bert' does not fit: this is a clip model" in result.stderr
