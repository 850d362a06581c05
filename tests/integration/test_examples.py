"""The Python examples run as a user runs them: two steps on the demo's emoji."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first example writes the demo's pictures and models."""
    return tmp_path_factory.mktemp("examples")


def run(example: str, folder: Path, *options: str) -> str:
    command = [sys.executable, f"examples/{example}", f"--folder={folder}", "--max_steps=2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_python_example_is_run_here():
    here = Path(__file__).read_text()
    examples = [path.name for path in (ROOT / "examples").glob("*.py")]
    assert len(examples) == 2
    assert all(f'run("{name}"' in here for name in examples)


@pytest.mark.parametrize("options", [["--manual"], ["--devices=2"]], ids=str)
def test_lightning_trains_on_the_emoji(folder, options):
    printed = run("lightning_emoji.py", folder, "--batch_size=48", "--chunk_size=16", *options)
    assert "2 steps, last loss " in printed
    assert "after:  recall@1 " in printed
    assert (folder / "tuned" / "vembed_config.json").is_file()


def test_a_loop_of_ones_own_trains_on_the_emoji(folder):
    printed = run("own_loop.py", folder, "--batch_size=16", "--chunk_size=6")
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]
    assert len(losses) == 2
    assert min(losses) > 0
    assert re.search(r"own name first: \d+\.\d % before, \d+\.\d % after", printed)
