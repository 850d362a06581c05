"""Rows per second of the training loader: i2i pairs of PNG and JPEG files, at the demo's and at a photo's size.

    python benchmark/data_loader.py [--rows 200] [--workers 0 1 2] [--augment light]

Reads files, decodes, resizes with CLIP's own image processor to 64 or 224 pixels, hashes, and makes batches of 32 rows;
no model runs. The files are written to a temporary folder first, so they come from memory, as on a machine that trains.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import CLIPImageProcessor

from vembed.data.batches.loader import TrainingLoader
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.model.processors.auto import TowerProcessor
from vembed.model.processors.pictures import TransformersImages
from vembed.model.spec import ModelSpec

_BATCH_ROWS = 32


@dataclass(frozen=True)
class Case:
    """Kind of file, its pixels, and the side of the square that the model takes."""

    ending: str
    width: int
    height: int
    model_side: int


CASES = (
    Case("png", 72, 72, 64),
    Case("jpg", 72, 72, 64),
    Case("png", 640, 480, 224),
    Case("jpg", 640, 480, 224),
    Case("jpg", 1600, 1200, 224),
)


def write_pairs(folder: Path, case: Case, num_rows: int) -> Path:
    """A JSONL of `num_rows` pairs over at most 128 different picture files."""
    names = [f"{number}.{case.ending}" for number in range(min(128, 2 * num_rows))]
    for number, name in enumerate(names):
        _picture(case, number).save(folder / name)
    rows = (
        f'{{"query": "{names[2 * i % len(names)]}", "positive": "{names[(2 * i + 1) % len(names)]}"}}\n'
        for i in range(num_rows)
    )
    path = folder / "pairs.jsonl"
    path.write_text("".join(rows))
    return path


def rows_per_second(path: Path, case: Case, *, num_workers: int, augment: str) -> float:
    """Speed of the second epoch; the first starts the workers."""
    settings = DataSettings.model_validate({"num_workers": num_workers, "retrieval_mode": "i2i", "augment": augment})
    datasets = load_datasets(str(path), settings)
    loader = TrainingLoader(datasets, _processor(case), settings, batch_size=_BATCH_ROWS, seed=0)
    next(loader.epoch(0))
    start = time.perf_counter()
    num_rows = sum(batch.queries.num_rows for batch, _ in loader.epoch(1))
    seconds = time.perf_counter() - start
    loader.close()
    return num_rows / seconds


def _processor(case: Case) -> TowerProcessor:
    spec = ModelSpec(family="vision", preset="dino", towers=("vision",), pooling={"vision": "cls"})
    return TowerProcessor(spec, None, TransformersImages(CLIPImageProcessor(), case.model_side))


def _picture(case: Case, seed: int) -> PIL.Image.Image:
    """Smooth shapes with a little noise, so that files are about as large as those of photos."""
    draw = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(draw.integers(0, 256, (12, 16, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((case.width, case.height), PIL.Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + draw.integers(-4, 5, smooth.shape)
    return PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--augment", choices=["none", "light", "strong"], default="none")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| files | to | " + " | ".join(f"{number} workers" for number in options.workers) + " |")
    print("|---|---|" + "---|" * len(options.workers))
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = write_pairs(Path(folder), case, options.rows)
            speeds = [
                rows_per_second(path, case, num_workers=number, augment=options.augment) for number in options.workers
            ]
        cells = " | ".join(f"{speed:.0f} rows/s" for speed in speeds)
        print(f"| {case.ending} {case.width} x {case.height} | {case.model_side} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
