"""Training steps in float32 and in bfloat16 autocast on this CPU: samples per second and peak memory.

    python benchmark/mixed_precision.py [--threads 1 2] [--steps 8] [--rounds 2] [--only demo]

demo: the recipe of `vembed demo` (EfficientNet-lite0 learns, 64 px). clip, bert, composed: the models of
benchmark/memory_estimate.py, of 20 million parameters the first two. Each measurement is what `vembed train --measure`
does, in a process of its own, in turns; the best of the rounds counts. Time is that on the clock: the machine has to be
idle. `mixed_precision: auto` stays float32 on a CPU because not all of them gain.
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine_in_words
from memory_estimate import CONFIGS

PRECISIONS = ("no", "bf16")
MODELS = ("demo", *CONFIGS)


def main() -> None:
    """Measure each model in both precisions, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after one that is not")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--worker", nargs=2, metavar=("STEPS", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(int(options.worker[0]), options.worker[1])
        return
    print(machine_in_words())
    print("| model | threads | float32, samples/s | MiB | bf16, samples/s | MiB | speed | memory |")
    print("|---|" + "---|" * 7)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            settings = demo(Path(folder)) if name == "demo" else CONFIGS[name](Path(folder))
            for threads in options.threads:
                compare(options, name, threads, settings)


def compare(options: argparse.Namespace, name: str, threads: int, settings: Any) -> None:
    """Print a row: both precisions, and bf16 in relation to float32."""
    found = {precision: {"rate": 0.0, "mib": 0.0} for precision in PRECISIONS}
    for _ in range(options.rounds):
        for precision in PRECISIONS:
            answer = ask({"settings": settings, "precision": precision}, threads, options.steps)
            found[precision] = max(found[precision], answer, key=lambda one: one["rate"])
    figures = " | ".join(f"{found[one]['rate']:.1f} | {found[one]['mib']:,.0f}" for one in PRECISIONS)
    rate, mib = (found["bf16"][key] / found["no"][key] for key in ("rate", "mib"))
    print(f"| {name} | {threads} | {figures} | {rate:.2f}x | {mib:.2f}x |", flush=True)


def ask(task: dict[str, Any], threads: int, steps: int) -> dict[str, float]:
    """What a fresh process finds."""
    command = [sys.executable, __file__, "--worker", str(steps), json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    answer: dict[str, float] = json.loads(output)
    return answer


def work(steps: int, task: str) -> None:
    """Print samples per second and the peak of some steps, as JSON."""
    from vembed.trainer import Trainer

    given = json.loads(task)
    measured = Trainer(given["settings"], mixed_precision=given["precision"]).measure(steps)
    print(json.dumps({"rate": measured.samples_per_second, "mib": measured.peak_memory_mib}))


def demo(folder: Path) -> str:
    """The demo's YAML, with its data and models."""
    from vembed.demo.files import prepare
    from vembed.demo.recipe import EPOCHS, write_recipe

    return str(write_recipe(prepare(folder), folder, epochs=EPOCHS))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
