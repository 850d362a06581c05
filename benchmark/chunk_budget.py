"""Chunks of tokens against chunks of rows on texts of mixed length: time and peak memory of a training step.

    python benchmark/chunk_budget.py [--batch_size 128] [--chunk_size 16] [--steps 3]

all-MiniLM-L6-v2 (of the `demo` extra), pairs of texts of 8 to 256 tokens (log-uniform, shuffled, seed 0), InfoNCE. The
budget is what a chunk of rows can reach: chunk_size x 256 tokens. Each kind of step has a process of its own; they take
turns on the same rows, and their losses must be equal. Time is processor time on one thread, without what other work
on the machine takes. Memory is the peak over the loaded model (VmHWM, set back once it is there). Exits with 1 below
1.6 times the speed, or above 1.05 times the memory.
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import machine_in_words
from mixed_texts import LONGEST, write_minilm_and_draw

MODES = ("rows", "tokens")
LEAST_SPEED, MOST_MEMORY, TOLERANCE = 1.6, 1.05, 1e-5


def main() -> None:
    """Write the model and the texts, step the two kinds in turns, print times, memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--chunk_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind, after one that is not")
    parser.add_argument("--worker", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options, *options.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.batch_size)
        results = compare(options, folder)
    seconds = {mode: median(result["seconds"] for result in results[mode][1:]) for mode in MODES}
    peaks = {mode: results[mode][-1]["peak_mib"] for mode in MODES}
    print(machine_in_words())
    print("| chunks of | chunks | tokens with padding | seconds | MiB | time | memory |")
    print("|---|---|---|---|---|---|---|")
    for mode in MODES:
        first = results[mode][0]
        counts = f"{first['chunks']:,} | {first['tokens']:,}"
        ratios = f"{seconds[mode] / seconds['rows']:.2f}x | {peaks[mode] / peaks['rows']:.2f}x"
        print(f"| {mode} | {counts} | {seconds[mode]:.2f} | {peaks[mode]:.0f} | {ratios} |")
    losses = [results[mode][0]["loss"] for mode in MODES]
    if not math.isclose(*losses, rel_tol=TOLERANCE):
        sys.exit(f"the losses differ: {losses}")
    speed, memory = seconds["rows"] / seconds["tokens"], peaks["tokens"] / peaks["rows"]
    print(
        f"{speed:.2f} times as fast (at least {LEAST_SPEED}) at {memory:.2f} times the memory (at most {MOST_MEMORY})"
    )
    sys.exit(speed < LEAST_SPEED or memory > MOST_MEMORY)


def compare(options: argparse.Namespace, folder: str) -> dict[str, list[dict[str, float]]]:
    """What each kind of step answers, turn by turn."""
    workers = {mode: start_worker(options, mode, folder) for mode in MODES}
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(options.steps + 1):
        for mode, worker in workers.items():
            results[mode].append(ask(worker))
    for worker in workers.values():
        worker.communicate()
    return results


def start_worker(options: argparse.Namespace, mode: str, folder: str) -> "subprocess.Popen[str]":
    """A process that does one step per line it reads."""
    arguments = ["--chunk_size", str(options.chunk_size), "--worker", mode, folder]
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(worker: "subprocess.Popen[str]") -> dict[str, float]:
    """One step of a worker: its seconds, its peak so far, its loss, and how it is chunked."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("step\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit("a worker ended before its time; its message is above")
    result: dict[str, float] = json.loads(line)
    return result


def work(options: argparse.Namespace, mode: str, folder: str) -> None:
    """Do one step for each line on standard input, and answer with its figures."""
    import torch

    from vembed.grad_cache.settings import GradCacheSettings
    from vembed.losses.factory import LossFactory
    from vembed.losses.settings import LossSettings
    from vembed.model.modeling import VisualRetrievalModel
    from vembed.training.gradient_cache_trainer import GradientCacheTrainer
    from vembed.training.step.chunking import chunk_batch
    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes

    torch.set_num_threads(1)
    model = VisualRetrievalModel.from_pretrained(f"{folder}/model")
    model.model.eval()  # without dropout, so that the losses of both kinds are equal
    rows = options.chunk_size
    chunks = {"gradient_cache_chunk_size": rows} if mode == "rows" else {"gradient_cache_chunk_tokens": rows * LONGEST}
    settings = GradCacheSettings.model_validate(chunks)
    trainer = GradientCacheTrainer(model.model, model.processor, LossFactory.create(LossSettings()), settings)
    batch = make_batch(Path(folder), model.processor)
    sides = chunk_batch(batch, model.processor, trainer.find_chunking(batch))
    padded = [model.processor.prepare(chunk.items, chunk.side) for side in sides for chunk in side.chunks]
    facts = {
        "chunks": len(padded),
        "tokens": sum(inputs.tensors["input_ids"].values.numel() for inputs in padded),
    }
    del padded
    cpu = torch.device("cpu")
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    for _ in sys.stdin:
        model.model.zero_grad(set_to_none=True)
        start = time.process_time()
        loss = trainer.step(batch).loss
        seconds = time.process_time() - start
        print(
            json.dumps({"seconds": seconds, "peak_mib": peak_memory_mib(cpu) - loaded, "loss": loss, **facts}),
            flush=True,
        )


def make_batch(folder, processor):
    """All pairs, one to one."""
    from vembed.data.collators.default import Collator
    from vembed.types import Item, LoadedExample

    pairs = json.loads((folder / "pairs.json").read_text())
    load = processor.load
    return Collator()([LoadedExample(load(Item(text=query)), (load(Item(text=text)),)) for query, text in pairs])


def write(folder: Path, num_pairs: int) -> None:
    """all-MiniLM-L6-v2, and pairs of texts of whole words of its vocabulary."""
    texts = write_minilm_and_draw(folder / "model", 2 * num_pairs)
    (folder / "pairs.json").write_text(json.dumps(list(zip(texts[::2], texts[1::2], strict=True))))


if __name__ == "__main__":
    main()
