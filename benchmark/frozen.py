"""Training heads over two frozen towers on the emoji set, with and without the cache of what the towers give.

    python benchmark/frozen.py [--image efficientnet-lite0 dinov2-small] [--epochs 4] [--threads 2] [--folder DIR]

Per image tower two runs of `vembed train`, each in a process of its own, one after the other, equal but for
cache_frozen_features. Printed: seconds of an epoch of training (median of the second and later ones, from
metrics.jsonl, which leaves validations and checkpoints out), of the whole command (with validations, and with filling
the cache), and the validation figures after the last epoch. DINOv2 needs `make install-dinov2`.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from demo_dinov2 import write_dinov2
from machine import machine_in_words

from vembed.demo.files import DemoFiles, prepare

IMAGE_SIZES = {"efficientnet-lite0": 64, "dinov2-small": 98}
METRICS = ("recall@1", "recall@10", "ndcg@10")
BATCH_SIZE = 48


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", nargs="+", choices=IMAGE_SIZES, default=list(IMAGE_SIZES))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("output/frozen"))
    arguments = parser.parse_args()
    files = prepare(arguments.folder)
    print(machine_in_words())
    print(f"MiniLM + image tower, both frozen, {arguments.epochs} epochs, {arguments.threads} threads\n")
    print("| image tower | cache | s per later epoch | faster | s of the command | " + " | ".join(METRICS) + " |")
    print("|---|---|---|---|---|" + "---|" * len(METRICS))
    for name in arguments.image:
        shutil.rmtree(arguments.folder / "features", ignore_errors=True)
        plain, cached = (run(files, name, arguments, cache=cache) for cache in (False, True))
        for label, result in (("no", plain), ("yes", cached)):
            faster = f"{plain['epoch'] / result['epoch']:.1f}x"
            figures = " | ".join(f"{100 * result[metric]:.1f}" for metric in METRICS)
            print(f"| {name} | {label} | {result['epoch']:.2f} | {faster} | {result['command']:.0f} | {figures} |")


def run(files: DemoFiles, name: str, arguments: argparse.Namespace, *, cache: bool) -> dict[str, float]:
    """One training: seconds per later epoch and of the command, and the last validation's figures."""
    output = arguments.folder / f"{name}-{'cached' if cache else 'plain'}"
    words = [
        f"text_model_name={files.text_model}",
        f"image_model_name={image_model(files, name, arguments.folder)}",
        f"image_size={IMAGE_SIZES[name]}",
        "freeze=[text,vision]",
        f"data_path={files.train['names_to_pictures']}",
        f"val_data_path=[{{path: {files.val['t2i']}, retrieval_mode: t2i}}]",
        f"batch_size={BATCH_SIZE}",
        "gradient_cache_chunk_size=192",
        f"epochs={arguments.epochs}",
        f"logging_steps={-(-count_rows(files.train['names_to_pictures']) // BATCH_SIZE)}",
        "save_steps=100000",
        "head_learning_rate=2e-3",
        "temperature=0.07",
        "report=false",
        "overwrite_output_dir=true",
        f"output_dir={output}",
        *([f"feature_cache_dir={arguments.folder / 'features'}", "cache_frozen_features=true"] if cache else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vembed", "train", *words], check=True, env=environment, capture_output=True)
    seconds = time.perf_counter() - started
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "samples" in line]
    epochs = [
        (line["samples"] - before["samples"]) / line["samples_per_second"] for before, line in itertools.pairwise(steps)
    ]
    figures = next(iter([line for line in lines if "eval" in line][-1]["eval"].values()))
    return {"epoch": statistics.median(epochs), "command": seconds, **{metric: figures[metric] for metric in METRICS}}


def image_model(files: DemoFiles, name: str, folder: Path) -> Path:
    """The folder of the image tower, written first if need be."""
    if name != "dinov2-small":
        return files.image_model
    path = folder / "models" / "dinov2-small"
    if not (path / "model.safetensors").is_file():
        write_dinov2(path)
    return path


def count_rows(path: Path) -> int:
    """Lines of a JSONL file."""
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
