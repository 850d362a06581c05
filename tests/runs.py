"""Training runs for the tests: their data, and runs in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.pictures import write_pairs

# What a run's lines tell of the machine rather than of the training.
_OF_THE_MACHINE = ("samples_per_second", "peak_memory_mib")


def two_data_sets(folder: Path) -> list[dict[str, str]]:
    """Text to image and image to image, 14 + 10 rows, the latter with a hard negative each."""
    text = write_pairs(folder / "t2i", 14, "t2i")
    images = write_pairs(folder / "i2i", 10, "i2i", num_negatives=1, seed=1000)
    return [{"path": text, "retrieval_mode": "t2i"}, {"path": images, "retrieval_mode": "i2i"}]


def start_training(settings: Mapping[str, Any], **options: Any) -> subprocess.Popen[str]:
    """`vembed train` with these settings (written beside output_dir, as YAML) in a process of its own."""
    file = Path(f"{settings['output_dir']}.yaml")
    file.write_text(yaml.safe_dump(dict(settings)))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "vembed", "train", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
        **options,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    output, errors = process.communicate(timeout=seconds)
    return process.returncode, output + errors


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Until the process has written something into the file."""
    _wait(lambda: file.exists() and file.stat().st_size > 0, process)


def wait_until_caught(process: subprocess.Popen[str], number: int) -> None:
    """Until the process has a handler of its own for a signal, as Linux tells."""
    status = Path(f"/proc/{process.pid}/status")

    def caught() -> bool:
        (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
        return bool(int(mask, 16) >> (number - 1) & 1)

    _wait(caught, process)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to hold"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """True if the process is there, and not a dead one that its parent has yet to ask for, as Linux tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.02)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without what tells of the machine."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _OF_THE_MACHINE} for line in lines]


def read_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
