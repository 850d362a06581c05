"""How the memory of a training step grows with the batch: pictures of 224 px, held as pixels or as files.

    export LD_PRELOAD=libtcmalloc_minimal.so.4  # what the limits are for: glibc's heap keeps holes between pictures
    python benchmark/batch_memory.py [--batches 32 256 1024 2048 8192] [--repeats 3] [--num_workers 0]

A CLIP of one small layer per tower (its activations are those of one chunk of 32), captions as queries, and a JPEG or
PNG file of 256 x 256 as the document of each; all files differ, so that none is encoded once for several rows. Each
run is `vembed train --measure 1` in a process of its own: two steps, the second of which is loaded after the first.

Peak: resident memory (VmHWM, set back once the model is loaded), the median of --repeats. Resident are the samples of a
batch times (1 + batches that the training process holds ahead; workers hold theirs). Growth is the slope of a line
through all peaks (least squares): what one sample more takes. A line's start is what no sample takes: the process, the
floats of a chunk (twice for a moment), the scores of a strip. Exits with 1 above 0.16 MiB (`uint8`) or 0.03 MiB over
the mean file (`encoded`).
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import linear_regression, mean, median
from typing import Any

from machine import machine_in_words

KINDS = ("uint8", "encoded")
LIMITS = {"uint8": 0.16, "encoded": 0.03}  # MiB per sample; encoded: over the file itself
MIB = 2**20
PIXELS, SIDE, CHUNK = 224, 256, 32
AHEAD = 0  # batches that the training process holds beside its own: workers hold theirs


def main() -> None:
    """Write the files, measure each batch size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 1024, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--worker", metavar="SETTINGS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = 2 * max(options.batches)
        sizes = write_rows(Path(folder), rows)
        settings = write_model(Path(folder)) | {"num_workers": options.num_workers}
        print(machine_in_words())
        print(f"{rows} files of {mean(sizes) / MIB:.3f} MiB on average, {options.repeats} runs each")
        print("| held as | batch | resident samples | peak, MiB | over the first, MiB per sample more |")
        print("|---|---|---|---|---|")
        kinds = [options.only] if options.only else KINDS
        worst = [compare(kind, options, settings, mean(sizes) / MIB) for kind in kinds]
    sys.exit(any(worst))


def compare(kind: str, options: argparse.Namespace, settings: Mapping[str, Any], file_mib: float) -> bool:
    """Print a line per batch size and the growth; gives whether that is more than it may be."""
    own_file = file_mib if kind == "encoded" else 0.0
    resident = [batch * (1 + AHEAD) for batch in sorted(options.batches)]
    peaks: list[float] = []
    for number, batch in enumerate(sorted(options.batches)):
        wanted = {**settings, "image_host_cache": kind, "batch_size": batch}
        peaks.append(median(ask(wanted) for _ in range(options.repeats)))
        more = resident[number] - resident[0]
        over_first = f"{(peaks[-1] - peaks[0]) / more:.3f}" if more else ""
        print(f"| {kind} | {batch:,} | {resident[number]:,} | {peaks[-1]:,.0f} | {over_first} |", flush=True)
    growth = linear_regression(resident, peaks).slope
    beside = f" = the file and {growth - own_file:.3f} MiB" if own_file else ""
    print(f"{kind}: {growth:.3f} MiB per resident sample{beside}; at most {LIMITS[kind]:.2f}", flush=True)
    return growth - own_file > LIMITS[kind]


def ask(settings: Mapping[str, Any]) -> float:
    """The peak in MiB that a fresh process measures."""
    command = [sys.executable, __file__, "--worker", json.dumps(settings)]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer["peak_mib"]


def work(settings: Mapping[str, Any]) -> None:
    """Train two steps and print the peak."""
    import torch

    from vembed.trainer import Trainer

    torch.set_num_threads(1)
    print(json.dumps({"peak_mib": Trainer(settings).measure(1).peak_memory_mib}))


def write_rows(folder: Path, num_rows: int) -> list[int]:
    """A JSONL of captions and pictures, every eighth a PNG file; gives the sizes of the files in bytes.

    Smooth shapes that all differ, with a little noise, so that files are about as large as those of photos.
    """
    import numpy as np
    import PIL.Image

    draw = np.random.default_rng(0)
    noise = draw.integers(-2, 3, (SIDE, SIDE, 3), dtype=np.int16)
    sizes = []
    with (folder / "pairs.jsonl").open("w") as lines:
        for number in range(num_rows):
            coarse = PIL.Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype(np.uint8))
            smooth = np.asarray(coarse.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR))
            path = folder / f"{number}.{'png' if number % 8 == 0 else 'jpg'}"
            PIL.Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
            sizes.append(path.stat().st_size)
            lines.write(json.dumps({"query": f"picture number {number}", "positive": path.name}) + "\n")
    return sizes


def write_model(folder: Path) -> dict[str, object]:
    """The settings of a run of a CLIP with one small layer per tower, random weights, and pictures of 224 px."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.tiny import tiny_clip

    tokenizer = AutoTokenizer.from_pretrained(tiny_clip(folder / "tiny"), model_max_length=32)
    layers = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layers, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**layers, "image_size": PIXELS, "patch_size": 32}
    model = folder / "model"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).save_pretrained(model)
    size = {"height": PIXELS, "width": PIXELS}
    pictures = CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=size)
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(model)
    return {
        "model_name": str(model),
        "data_path": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "run"),
        "gradient_cache_chunk_size": CHUNK,
        "val_fraction": 0.0,
        "device": "cpu",
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
