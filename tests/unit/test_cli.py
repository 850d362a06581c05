"""Arguments reach the config, mistakes end with a message and exit code 2, and nothing heavy is imported for them."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vembed
from vembed.cli import app
from vembed.configuration.sections import every_key
from vembed.configuration.yaml_text import parse_yaml

HEAVY = ("torch", "transformers", "datasets", "timm", "matplotlib", "accelerate", "peft", "numpy", "PIL")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs `vembed` with words, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def in_a_process(*words, cwd, **environment):
    """`python -m vembed` in a fresh process."""
    command = [sys.executable, "-m", "vembed", *words]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_version(run):
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"vembed {vembed.__version__}\n")


def test_help_names_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(
        f"\n  {command} " in result.stdout
        for command in ("train", "evaluate", "encode", "export", "models", "demo", "config")
    )


def test_train_help_shows_26_settings_and_help_all_shows_every_one(run):
    short, full = run("train", "--help"), run("train", "--help-all")
    assert (short.exit_code, full.exit_code) == (0, 0)
    settings = [line.split()[0].removeprefix("--") for line in short.stdout.splitlines() if line.startswith("  --")]
    assert len([name for name in settings if name in every_key()]) == 26
    assert settings[:3] == ["dry_run", "measure", "help,"]
    assert all(f"  --{name}" in full.stdout for name in every_key())
    assert "--help-all shows every one" in short.stdout


def test_a_mistyped_command_gets_the_nearest(run):
    result = run("trian")
    assert result.exit_code == 2
    assert "Did you mean 'train'?" in result.stderr


def test_config_show_prints_values_with_origins(run, tmp_path):
    (tmp_path / "my.yaml").write_text("preset: clip\nepochs: 7\n")
    result = run("config", "show", "my.yaml", "--batch_size", "8", "seed=1")
    assert result.exit_code == 0
    words = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.startswith("  ")}
    assert words["epochs"] == ["7", "my.yaml:2"]
    assert words["batch_size"] == ["8", "command", "line"]
    assert words["learning_rate"] == ["1.0e-05", "preset", "clip"]
    assert words["logging_steps"] == ["10", "default"]


def test_the_config_file_may_stand_anywhere_among_the_settings(run, tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 7\n")
    for words in (
        ["my.yaml", "--seed", "1", "--use_lora"],
        ["--seed", "1", "my.yaml"],
        ["--use_lora", "my.yaml", "seed=1"],
    ):
        result = run("config", "show", *words)
        assert result.exit_code == 0
        assert "my.yaml:1" in result.stdout


def test_a_value_that_equals_the_config_files_name_stays_a_value(run, tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 7\n")
    result = run("config", "show", "--output_dir", "my.yaml", "my.yaml")
    assert result.exit_code == 0
    assert "output_dir my.yaml command line" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config", "show", "none.yaml"], "none.yaml: no such file"),
        (["train", "--dryrun", "my.yaml"], "--dryrun: no such option; did you mean --dry_run?"),
        (["doctor", "--gradcheck", "my.yaml"], "--gradcheck: no such option; did you mean --grad_check?"),
        (["config", "show", "--batch_sze", "8"], "command line: batch_sze: unknown key; did you mean batch_size?"),
        (["config", "show", "--seed", "-1"], "command line: seed: expected int, at least 0; got -1"),
        (["config", "show", "a.yaml", "b.yaml"], "unexpected argument 'b.yaml' after 'a.yaml'"),
        (["config", "show", "--batch_size"], "batch_size needs a value (int, at least 1)"),
        (["train"], "model_name: is not set"),
        (["train", "--data_path", "there.csv", "--model_name", "m"], "data_path: there is no file or folder there.csv"),
        (["train", "--measure", "0"], "--measure"),
        (["evaluate"], "name what to measure"),
        (["evaluate", "a", "b"], "unexpected argument 'b' after 'a'"),
        (["evaluate", "a", "--eval_kk", "1"], "eval_kk: unknown key; did you mean eval_k?"),
        (["encode", "model"], "--input"),
        (["export", "model", "--output", "new"], "say what to write: --merge writes plain weights"),
        (["export", "model", "--merge", "--output", "new", "--torch_dtype", "int8"], "known are: float32, bfloat16"),
        (["export", "model", "--merge", "--output", "."], "--output . is there already; name a new folder"),
        (["export", "./nowhere", "--merge", "--output", "new"], "there is no model folder './nowhere'"),
        (["encode", "x", "--input", "", "--output", "a.npz"], "--input is empty"),
        (["encode", "x", "--input", "a.txt", "--output", " "], "--output is empty"),
        (["export", "x", "--merge", "--output", ""], "--output is empty"),
        (["demo", "--output_dir", ""], "--output_dir is empty"),
        (["evaluate", ""], "what to measure is empty"),
        (["train", "--data_path", "", "--model_name", ""], "data_path: is empty"),
        (["train", "--bacth-size=3", "--dry_run"], "bacth_size: unknown key; did you mean batch_size?"),
    ],
)
def test_a_mistake_ends_with_a_message_and_exit_code_2(run, words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_generated_texts_are_printed_whole(run):
    assert parse_yaml(run("config", "defaults").stdout).values.keys() == every_key().keys()
    assert json.loads(run("config", "schema").stdout)["properties"].keys() == every_key().keys()
    assert run("config", "reference").stdout.startswith("# Configuration\n")


def test_an_error_in_a_process_has_its_exit_code_and_a_traceback_only_on_request(tmp_path):
    plain = in_a_process("config", "show", "epochs=0", cwd=tmp_path)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr == "Error: command line: epochs: expected int, at least 1; got 0\n"
    debug = in_a_process("config", "show", "epochs=0", cwd=tmp_path, VEMBED_DEBUG="1")
    assert debug.returncode == 2
    assert debug.stderr.startswith("Traceback")


def test_an_unexpected_exception_shows_its_traceback_and_exits_with_1(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    result = in_a_process("config", "show", "plugins=broken", cwd=tmp_path)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_an_interrupt_exits_with_130(tmp_path):
    (tmp_path / "stops.py").write_text("raise KeyboardInterrupt\n")
    result = in_a_process("config", "show", "plugins=stops", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


LIGHT = """
--help
train --help-all
evaluate --help
encode --help
export --help
config show preset=clip
config schema
train --batch_sze 8
evaluate model --test_data_pth a.jsonl
evaluate model
tran
"""


def test_help_config_and_mistakes_import_nothing_heavy(tmp_path):
    """One after the other in one process: what the first of them had imported, the next would show too."""
    script = (
        "import json, sys\n"
        "from vembed.cli import main\n"
        "for line in sys.argv[1].split('\\n'):\n"
        "    sys.argv = ['vembed', *line.split()]\n"
        "    try:\n"
        "        main()\n"
        "        code = 0\n"
        "    except SystemExit as exit:\n"
        "        code = exit.code\n"
        f"    told = [line, code, [name for name in {HEAVY} if name in sys.modules]]\n"
        "    print('told', json.dumps(told), file=sys.stderr)\n"
    )
    lines = LIGHT.split("\n")[1:-1]
    result = subprocess.run(
        [sys.executable, "-c", script, "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = [json.loads(line.removeprefix("told ")) for line in result.stderr.splitlines() if line.startswith("told ")]
    assert [line for line, _, _ in told] == lines
    assert {code or 0 for _, code, _ in told} == {0, 2}
    assert [(line, heavy) for line, _, heavy in told if heavy] == []


def test_config_show_of_a_local_model_imports_no_torch(clip_folder, tmp_path):
    script = "import sys\nfrom vembed.config import load_config\nload_config(overrides={'model_name': sys.argv[1]})\n"
    check = "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", script + check, clip_folder], cwd=tmp_path, check=True)


def test_the_commands_bring_neither_settings_nor_yaml_before_they_run(tmp_path):
    check = f"import sys, vembed.cli; assert not {{*{HEAVY}, 'pydantic', 'yaml'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)


def test_importing_the_package_imports_nothing_else(tmp_path):
    check = f"import sys, vembed; assert not {{*{HEAVY}, 'pydantic', 'typer', 'yaml'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)
