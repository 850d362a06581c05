"""What the gradient cache costs and saves: time and peak memory of a training step, cached against plain.

    python benchmark/grad_cache.py [--batch_size 128] [--chunk_size 16] [--steps 3]

A CLIP of about 20 million parameters with random weights, pictures of 112 px, texts of 32 tokens. Each kind of step
(forward, loss, backward) has a process of its own, and the two take turns. Time is processor time on one thread: other
work on the machine does not count. Memory is the peak of resident memory over the loaded model and batch (VmHWM, set
back once both are there).
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

MODES = ("plain", "cached")
PIXELS, TOKENS, VOCABULARY = 112, 32, 8192


def main() -> None:
    """Run the workers in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--chunk_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind, after one that is not")
    parser.add_argument(
        "--threads", type=int, default=1, help="more than one wait for each other, which counts as time"
    )
    parser.add_argument("--worker", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Start a process per mode, step them in turns, print times, memory and ratios."""
    workers = {mode: start_worker(options, mode) for mode in MODES}
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(options.steps + 1):
        for mode, worker in workers.items():
            results[mode].append(ask(worker))
    for worker in workers.values():
        worker.communicate()
    seconds = {mode: median(result["seconds"] for result in results[mode][1:]) for mode in MODES}
    peak = {mode: results[mode][-1]["peak_mib"] for mode in MODES}
    first = results["plain"][0]
    print(f"{first['parameters'] / 1e6:.1f} M parameters, batch {options.batch_size}, chunk {options.chunk_size}")
    print(f"{'step':<8} {'seconds':>8} {'peak MiB':>9} {'time':>6} {'memory':>7} {'loss':>9}")
    for mode in MODES:
        ratios = f"{seconds[mode] / seconds['plain']:>5.2f}x {peak[mode] / peak['plain']:>6.2f}x"
        print(f"{mode:<8} {seconds[mode]:>8.2f} {peak[mode]:>9.0f} {ratios} {results[mode][0]['loss']:>9.5f}")


def start_worker(options: argparse.Namespace, mode: str) -> "subprocess.Popen[str]":
    """A process that does one step per line it reads."""
    names = ("batch_size", "chunk_size", "threads")
    arguments = [text for name in names for text in (f"--{name}", str(getattr(options, name)))]
    command = [sys.executable, __file__, "--worker", mode, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: "subprocess.Popen[str]") -> dict[str, float]:
    """One step of a worker: its seconds, its peak so far, its loss."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("step\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit("a worker ended before its time; its message is above")
    result: dict[str, float] = json.loads(line)
    return result


def work(options: argparse.Namespace) -> None:
    """Do one step for each line on standard input, and answer with its figures."""
    import torch  # noqa: PLC0415 (only the workers need it)

    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes  # noqa: PLC0415

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, trainer = build(options.chunk_size if options.worker == "cached" else None)
    batch = make_batch(options.batch_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cpu = torch.device("cpu")
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    for _ in sys.stdin:
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        loss = trainer.step(batch).loss
        seconds = time.process_time() - start
        answer = {"seconds": seconds, "peak_mib": peak_memory_mib(cpu) - loaded, "loss": loss, "parameters": parameters}
        print(json.dumps(answer), flush=True)


def build(chunk_size):
    """The model and its step; chunk_size None: plain."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel  # noqa: PLC0415

    from vembed.grad_cache.settings import GradCacheSettings  # noqa: PLC0415
    from vembed.losses.factory import LossFactory  # noqa: PLC0415
    from vembed.losses.settings import LossSettings  # noqa: PLC0415
    from vembed.model.backbones.dual import DualModel  # noqa: PLC0415
    from vembed.model.processors.auto import TowerProcessor  # noqa: PLC0415
    from vembed.model.processors.pictures import TransformersImages  # noqa: PLC0415
    from vembed.model.spec import ModelSpec  # noqa: PLC0415
    from vembed.training.gradient_cache_trainer import GradientCacheTrainer  # noqa: PLC0415

    text = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    text |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": TOKENS}
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
    vision |= {"image_size": PIXELS, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)
    pooling = {"text": "own", "vision": "own"}
    spec = ModelSpec(family="clip", preset="clip", towers=("text", "vision"), pooling=pooling)
    model = DualModel(spec, CLIPModel(config)).train()
    square = {"height": PIXELS, "width": PIXELS}
    images = TransformersImages(CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=square), None)
    settings = GradCacheSettings(use_gradient_cache=chunk_size is not None, gradient_cache_chunk_size=chunk_size or 1)
    objective = LossFactory.create(LossSettings())
    return model, GradientCacheTrainer(model, TowerProcessor(spec, None, images), objective, settings)


def make_batch(rows: int):
    """Random texts as queries and random pictures as documents, one to one."""
    import torch  # noqa: PLC0415

    from vembed.types import Batch, Inputs, Ragged, Targets  # noqa: PLC0415

    one_each = torch.ones(rows, dtype=torch.int64)
    ids = torch.randint(2, VOCABULARY, (rows, TOKENS))
    ids[:, -1] = 1
    texts = {"input_ids": Ragged(ids, one_each), "attention_mask": Ragged(torch.ones_like(ids), one_each)}
    pictures = torch.randint(0, 256, (rows, 3, PIXELS, PIXELS), dtype=torch.uint8)
    numbers = torch.arange(rows)
    no_groups = torch.full((rows,), -1)
    none = Ragged(numbers[:0], torch.zeros_like(numbers))
    targets = Targets(no_groups, numbers, no_groups, numbers + rows, Ragged(numbers, one_each), none)
    return Batch(Inputs(rows, texts), Inputs(rows, {"pixel_values": Ragged(pictures, one_each)}), targets)


if __name__ == "__main__":
    main()
