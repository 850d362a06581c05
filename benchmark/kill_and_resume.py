"""Kills real runs (kill -9) at random moments, lets them go on, and compares them with one that nobody stopped.

    python benchmark/kill_and_resume.py [--moments 20] [--workers 0 2] [--seed 0] [--folder DIR]

Each moment is a `vembed train` of its own, killed while it starts, wherever it is, or while it writes a checkpoint, and
restarted at once: from its latest checkpoint, or anew where it has none. In the end its weights and its metrics.jsonl,
but for speed and memory, must be those of the straight run, to the bit, and a few seconds after each kill no process of
it may be left. Every fourth picture is large, so that a kill finds workers in the midst of decoding. The exit code is
the number of moments that failed.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import torch
import yaml
from transformers import ViTConfig, ViTImageProcessor, ViTModel

_KINDS = ("start", "anywhere", "save")
_LEAVING_SECONDS = 5.0
_OF_THE_MACHINE = ("samples_per_second", "peak_memory_mib")
_ROOT = Path(__file__).resolve().parents[1]
_OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Straight:
    """The run that nobody stopped: its folder, and the seconds to its first line of metrics and to its end."""

    folder: Path
    first_step: float
    whole: float


@dataclass(frozen=True)
class Moment:
    """When a run was killed and what came of it. left: its processes that lived on; wrong: what went wrong, or ""."""

    num_workers: int
    kind: str
    seconds: float
    step: int
    checkpoint: str
    left: int
    wrong: str


def prepare(folder: Path) -> Path:
    """A tiny random model and 28 pairs of pictures, and the YAML of a run over them; returns the YAML."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    ViTModel(ViTConfig(image_size=64, patch_size=16, **sizes, **dropout)).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    for number in range(56):
        side = 1200 if number % 4 == 0 else 90
        coarse = PIL.Image.fromarray(draw.integers(0, 256, (9, 9, 3)).astype(np.uint8))
        coarse.resize((side, side), PIL.Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    rows = [json.dumps({"query": f"{2 * row}.png", "positive": f"{2 * row + 1}.png"}) for row in range(28)]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    settings = {
        "model_name": str(folder / "model"),
        "data_path": str(folder / "pairs.jsonl"),
        "retrieval_mode": "i2i",
        "val_fraction": 0.2,
        "augment": "strong",
        "batch_size": 6,
        "gradient_cache_chunk_size": 4,
        "max_steps": 16,
        "epochs": 16,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_steps": 5,
        "save_steps": 2,
        "save_total_limit": 2,
        "report": False,
        "device": "cpu",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


def run_straight(config: Path) -> Straight:
    """Train to the end, without workers."""
    run = config.parent / "straight"
    started = time.monotonic()
    process = _start(config, run, 0)
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    first_step = time.monotonic() - started
    _finish(process, run)
    return Straight(run, first_step, time.monotonic() - started)


def kill_and_resume(config: Path, straight: Straight, name: str, draw: random.Random, num_workers: int) -> Moment:
    """One moment: start, kill, restart, and compare."""
    run, kind = config.parent / name, draw.choice(_KINDS)
    started = time.monotonic()
    process = _start(config, run, num_workers)
    _wait_for(kind, process, run, straight, draw)
    process.kill()
    process.wait()
    seconds = time.monotonic() - started
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    step = _lines(run)[-1]["step"] if _lines(run) else 0
    again = ["--resume_from_checkpoint", "latest"] if checkpoints else ["--overwrite_output_dir", "true"]
    restarted = _start(config, run, num_workers, *again)  # at once: what the dead run holds must be free by then
    left = _num_left(run, restarted.pid)
    try:
        _finish(restarted, run)
        wrong = _difference(straight.folder, run)
    except RuntimeError as error:
        wrong = str(error)
    if _num_left(run):
        wrong = wrong or "processes are left after the end"
    shutil.rmtree(run, ignore_errors=True)
    return Moment(num_workers, kind, seconds, step, checkpoints[-1].name if checkpoints else "none", left, wrong)


def table(moments: Sequence[Moment]) -> list[str]:
    """A line of Markdown for each moment."""
    lines = [
        "| workers | killed | after | last line | checkpoint | processes left | restarted, it |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in moments:
        when = f"{one.kind} | {one.seconds:.1f} s | step {one.step} | {one.checkpoint}"
        lines.append(f"| {one.num_workers} | {when} | {one.left} | {one.wrong or 'is the straight run'} |")
    return lines


def failed(moments: Sequence[Moment]) -> list[Moment]:
    """Those that left a process, or did not become the straight run."""
    return [one for one in moments if one.left or one.wrong]


def _start(config: Path, run: Path, num_workers: int, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "vembed", "train", str(config), "--output_dir", str(run)]
    log = run.with_suffix(".log")
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--num_workers", str(num_workers), *more],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_OFFLINE},
            cwd=_ROOT,
        )


def _finish(process: "subprocess.Popen[bytes]", run: Path) -> None:
    if process.wait() != 0:
        words = run.with_suffix(".log").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"ended with {process.returncode}: {words[-1] if words else ''}")


def _wait_for(
    kind: str, process: "subprocess.Popen[bytes]", run: Path, straight: Straight, draw: random.Random
) -> None:
    """Until the moment to kill; or the run's end, if that comes before."""
    if kind == "start":
        until = time.monotonic() + draw.uniform(0, straight.first_step)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        return
    step = draw.randrange(1, len(_lines(straight.folder)) - 3)
    while process.poll() is None and len(_lines(run)) < step:
        time.sleep(0.002)
    if kind == "anywhere":
        time.sleep(draw.uniform(0, (straight.whole - straight.first_step) / len(_lines(straight.folder))))
        return
    while process.poll() is None and not list(run.glob(".*.new")):
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.02))


def _num_left(run: Path, besides: int | None = None) -> int:
    """Processes that still have the run's folder in their command, a few seconds on; not the one named, or its own."""
    until = time.monotonic() + _LEAVING_SECONDS
    while (found := _processes(run, besides)) and time.monotonic() < until:
        time.sleep(0.05)
    return len(found)


def _processes(run: Path, besides: int | None) -> list[int]:
    own = set()
    if besides is not None and psutil.pid_exists(besides):
        own = {besides, *(child.pid for child in psutil.Process(besides).children(recursive=True))}
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(run) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return [pid for pid in found if pid not in own]


def _difference(straight: Path, run: Path) -> str:
    """What differs between two finished runs; "" if nothing does."""
    if _lines(straight) != _lines(run):
        return "has other metrics"
    last = max(straight.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    for folder in ("final", "best", last):
        names = sorted(path.name for path in (straight / folder).rglob("*.safetensors"))
        files = [sorted((one / folder).rglob("*.safetensors")) for one in (straight, run)]
        if [path.name for path in files[1]] != names:
            return f"has other files in {folder}"
        for expected, found in zip(*files, strict=True):
            if expected.read_bytes() != found.read_bytes():
                return f"has other numbers in {folder}/{found.name}"
    return ""


def _lines(run: Path) -> list[dict[str, object]]:
    file = run / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    lines = [json.loads(line) for line in whole.splitlines()]
    return [{key: value for key, value in line.items() if key not in _OF_THE_MACHINE} for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns how many moments failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty one, for models, data and runs; default: a temporary one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        config = prepare(options.folder or Path(temporary))
        straight = run_straight(config)
        draw = random.Random(options.seed)
        moments = []
        for num_workers in options.workers:
            for number in range(options.moments):
                moments.append(kill_and_resume(config, straight, f"run-{num_workers}-{number}", draw, num_workers))
                print(table(moments)[-1] if len(moments) > 1 else "\n".join(table(moments)), flush=True)
    wrong = failed(moments)
    print(f"\n{len(moments) - len(wrong)} of {len(moments)} are as if nothing had happened")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
