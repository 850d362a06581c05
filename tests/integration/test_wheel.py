"""The wheel holds all that training needs: built, installed apart, and run from another folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.pictures import write_pairs

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment or None, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_ships_presets_and_templates(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "vembed/configs/defaults.yaml" in names
    assert "vembed/configs/clip.yaml" in names
    assert "vembed/py.typed" in names
    assert any(name.startswith("vembed/evaluation/templates/") for name in names)
    assert not any(name.startswith("tests/") for name in names)


@pytest.mark.slow
def test_an_installed_wheel_trains_two_steps_from_another_folder(wheel, tmp_path, clip_folder):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    data = write_pairs(tmp_path / "data", 12)
    environment = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)}
    where = run(sys.executable, "-c", "import vembed; print(vembed.__file__)", cwd=tmp_path, **environment)
    assert Path(where.strip()).is_relative_to(site)
    settings = [f"--model_name={clip_folder}", f"--data_path={data}", "--batch_size=4", "--max_steps=2"]
    run(sys.executable, "-m", "vembed", "train", *settings, "--output_dir=run", cwd=tmp_path, **environment)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report" / "report.html").is_file()
