"""`vembed doctor`: facts about the machine, and whether plain and cached gradients of a user's own model agree."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.pictures import write_pairs
from vembed.cli import app
from vembed.model.vectors.fusion_registry import FusionRegistry

BATCH_MEAN = "text + image - text.mean(dim=0)"  # as batch norm without running statistics
OTHER_NUMBERS = "text + image + torch.from_numpy(numpy.random.rand(*text.shape)).to(text)"  # none of torch's own


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs `vembed` with words, in a folder of the user's."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def write(tmp_path):
    """A function that writes cfg.yaml for a model and its data."""

    def config(folder, *lines, mode="m2i", num_negatives=0):
        data = write_pairs(tmp_path / "data", 20, mode, num_negatives=num_negatives)
        head = [f"model_name: {folder}", f"data_path: {data}", f"retrieval_mode: {mode}", "val_fraction: 0.0"]
        (tmp_path / "cfg.yaml").write_text("\n".join([*head, "device: cpu", "batch_size: 16", *lines]))

    return config


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A function that writes a user's module with a fusion of this formula, and gives the line that imports it."""
    names = set(FusionRegistry.list())

    def module(name, formula):
        code = (
            "import numpy\nimport torch\nfrom vembed.model.vectors.fusion import Fusion\n"
            "from vembed.model.vectors.fusion_registry import FusionRegistry\n"
            f"@FusionRegistry.decorator({name!r})\nclass Own(Fusion):\n"
            f"    def forward(self, text, image):\n        return {formula}\n"
        )
        (tmp_path / f"{name}.py").write_text(code)
        return [f"plugins: [{name}]", f"fusion: {name}"]

    monkeypatch.syspath_prepend(tmp_path)
    yield module
    for name in set(FusionRegistry.list()) - names:
        del FusionRegistry._components[name]
        sys.modules.pop(name, None)


def overall(output):
    """The relative differences of the whole gradient, in the order of the comparisons."""
    return [float(number) for number in re.findall(r"^all +(\S+), at most", output, re.MULTILINE)]


def test_it_says_what_the_machine_has_and_that_a_config_holds(run, write, clip_folder):
    bare = run("doctor")
    assert bare.exit_code == 0, bare.output
    assert {"vembed", "torch", "device", "free"} <= {line.split()[0] for line in bare.stdout.splitlines()}
    assert "config " not in bare.stdout
    write(clip_folder)
    assert "config              holds; mixed precision: no" in run("doctor", "cfg.yaml").stdout
    wrong = run("doctor", "cfg.yaml", "--batch_sise", "8")
    assert wrong.exit_code == 2
    assert "did you mean batch_size?" in wrong.output


def test_the_cached_gradient_of_a_sound_model_passes_and_nothing_is_written(run, write, clip_folder, tmp_path):
    write(clip_folder, "gradient_cache_chunk_size: 64", "mixed_precision: bf16")
    before = sorted(tmp_path.rglob("*"))
    result = run("doctor", "--grad-check", "cfg.yaml")
    assert result.exit_code == 0, result.output
    assert "batch         8 queries, 8 documents" in result.stdout
    assert "chunk         3 rows: 3 of queries, 3 of documents" in result.stdout
    assert re.findall(r"^(\w+) +\d\.\d+e", result.stdout, re.MULTILINE) == ["scale", "text", "vision", "all"]
    (difference,) = overall(result.stdout)
    assert 0 < difference < 1e-5
    assert result.stdout.endswith("the cached gradient is the plain one\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_chunks_of_tokens_and_another_loss_are_checked_as_they_are_set(run, write, clip_folder):
    write(clip_folder, "gradient_cache_chunk_tokens: 40", "loss_type: triplet", "gradient_cache_retain: 0.5")
    result = run("doctor", "cfg.yaml", "--grad-check", "--rows", "6")
    assert result.exit_code == 0, result.output
    assert "batch         6 queries, 6 documents" in result.stdout
    assert "chunk         40 tokens" in result.stdout


def test_a_model_with_dropout_is_checked_for_its_random_numbers_too(run, write, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "bert")
    path = tmp_path / "bert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_dropout_prob": 0.3}))
    write(tmp_path / "bert", mode="t2t")
    result = run("doctor", "--grad-check", "cfg.yaml")
    assert result.exit_code == 0, result.output
    assert "chunks again against one graph, with dropout" in result.stdout
    assert "chunks against the whole batch, without dropout" in result.stdout
    assert len(overall(result.stdout)) == 2


@pytest.mark.parametrize(("name", "formula"), [("batch_mean", BATCH_MEAN), ("other_numbers", OTHER_NUMBERS)])
def test_a_model_that_the_cache_does_not_suit_fails(run, write, clip_folder, plugin, name, formula):
    write(clip_folder, *plugin(name, formula))
    result = run("doctor", "--grad-check", "cfg.yaml", "--plugins", name)
    assert result.exit_code == 1, result.output
    assert max(overall(result.stdout)) > 0.01
    assert "DIFFERENT" in result.stdout
    assert "the cached gradient is not the plain one: an embedding depends on the other rows" in result.stdout


def test_the_same_plugin_without_its_flaw_passes(run, write, clip_folder, plugin):
    write(clip_folder, *plugin("sound", "text + 2 * image"))
    assert run("doctor", "--grad-check", "cfg.yaml", "--plugins", "sound").exit_code == 0


def test_a_check_without_a_config_is_a_users_mistake(run):
    result = run("doctor", "--grad-check")
    assert result.exit_code == 2
    assert "vembed doctor --grad-check CONFIG.yaml" in result.output


def test_a_broken_replay_is_seen(run, write, clip_folder, monkeypatch):
    """A chunk that is passed back twice, as a wrong loop would."""
    from vembed.grad_cache.cachex import functional  # noqa: PLC0415

    passed, calls = functional._pass_back, []

    def twice(chunk):
        calls.append(chunk)
        if len(calls) == 2:
            functional.torch.autograd.backward(chunk.outputs()[0].sum())
        passed(chunk)

    monkeypatch.setattr(functional, "_pass_back", twice)
    write(clip_folder)
    assert run("doctor", "--grad-check", "cfg.yaml").exit_code == 1
    assert Path("cfg.yaml").exists()


@pytest.mark.parametrize("lines", [("loss_type: preference",), ("use_distillation: true", "teacher_model_name: {}")])
def test_what_a_loss_compares_with_is_there_for_the_comparison_too(lines, run, write, clip_folder):
    write(clip_folder, *(line.format(clip_folder) for line in lines), num_negatives=1)
    result = run("doctor", "cfg.yaml", "--grad-check")
    assert result.exit_code == 0, result.output
