"""What frozen first layers save: processor time and peak memory of a cached training step.

    python benchmark/frozen_layers.py [--batch_size 32] [--chunk_size 8] [--frozen 6] [--steps 2]

A ViT of 384 x 8 with random weights and pictures of 112 px, pictures as queries and as documents, one thread. Three
steps take turns, each in a process of its own: all layers learn; the first ones are frozen and run in both passes of
the gradient cache (gradient_cache_states_gib: 0); they are frozen and run once. Memory is the peak of resident memory
over the loaded model and batch.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

MODES = ("learning", "frozen, run twice", "frozen, run once")
PIXELS = 112


def main() -> None:
    """Run the workers in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--chunk_size", type=int, default=8)
    parser.add_argument("--frozen", type=int, default=6, help="layers of the 8")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each kind, after one that is not")
    parser.add_argument("--worker", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Start a process per mode, step them in turns, print times, memory and ratios."""
    shared = [
        text for name in ("batch_size", "chunk_size", "frozen") for text in (f"--{name}", f"{vars(options)[name]}")
    ]
    workers = {
        mode: subprocess.Popen(
            [sys.executable, __file__, "--worker", mode, *shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mode in MODES
    }
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(options.steps + 1):
        for mode, worker in workers.items():
            print("step", file=worker.stdin, flush=True)
            results[mode].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    seconds = {mode: median(result["seconds"] for result in results[mode][1:]) for mode in MODES}
    peak = {mode: results[mode][-1]["peak_mib"] for mode in MODES}
    print(
        f"batch {options.batch_size} + {options.batch_size}, chunk {options.chunk_size}, {options.frozen} of 8 layers"
    )
    print(f"{'step':<18} {'seconds':>8} {'peak MiB':>9} {'time':>6} {'memory':>7} {'loss':>9}")
    for mode in MODES:
        ratios = f"{seconds[mode] / seconds[MODES[0]]:>5.2f}x {peak[mode] / peak[MODES[0]]:>6.2f}x"
        print(f"{mode:<18} {seconds[mode]:>8.2f} {peak[mode]:>9.0f} {ratios} {results[mode][0]['loss']:>9.5f}")


def work(options: argparse.Namespace) -> None:
    """Do one step for each line on standard input, and answer with its figures."""
    import torch  # noqa: PLC0415 (only the workers need it)

    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, trainer = build(options)
    batch = make_batch(options.batch_size)
    cpu = torch.device("cpu")
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    for _ in sys.stdin:
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        loss = trainer.step(batch).loss
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, "peak_mib": peak_memory_mib(cpu) - loaded, "loss": loss}), flush=True)


def build(options: argparse.Namespace):
    """The model and its step."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel  # noqa: PLC0415

    from vembed.grad_cache.settings import GradCacheSettings  # noqa: PLC0415
    from vembed.losses.factory import LossFactory  # noqa: PLC0415
    from vembed.losses.settings import LossSettings  # noqa: PLC0415
    from vembed.model.backbones.auto import VisionModel  # noqa: PLC0415
    from vembed.model.backbones.vision import VisionTower  # noqa: PLC0415
    from vembed.model.processors.auto import TowerProcessor  # noqa: PLC0415
    from vembed.model.processors.pictures import TransformersImages  # noqa: PLC0415
    from vembed.model.spec import ModelSpec  # noqa: PLC0415
    from vembed.training.gradient_cache_trainer import GradientCacheTrainer  # noqa: PLC0415

    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
    network = ViTModel(ViTConfig(**shape, image_size=PIXELS, patch_size=16), add_pooling_layer=False)
    spec = ModelSpec(family="vision", preset="dino", towers=("vision",), pooling={"vision": "cls"})
    model = VisionModel(spec, VisionTower(network, "cls"))
    if options.worker != MODES[0]:
        model.freeze_layers({"vision": options.frozen})
    square = {"height": PIXELS, "width": PIXELS}
    processor = TowerProcessor(spec, None, TransformersImages(ViTImageProcessor(size=square), None))
    limit = 1.0 if options.worker == MODES[2] else 0.0
    settings = GradCacheSettings(gradient_cache_chunk_size=options.chunk_size, gradient_cache_states_gib=limit)
    return model, GradientCacheTrainer(model.train(), processor, LossFactory.create(LossSettings()), settings)


def make_batch(rows: int):
    """Random pictures as queries and as documents, one to one."""
    import torch  # noqa: PLC0415

    from vembed.types import Batch, ItemRows, LoadedItem, Ragged, Targets  # noqa: PLC0415

    def pictures(side):
        drawn = torch.randint(0, 256, (rows, 3, PIXELS, PIXELS), dtype=torch.uint8)
        items = [LoadedItem(None, ({"pixel_values": one},), number) for number, one in enumerate(drawn)]
        return ItemRows(tuple(items), side)

    numbers = torch.arange(rows)
    no_groups, one_each = torch.full((rows,), -1), torch.ones_like(numbers)
    none = Ragged(numbers[:0], torch.zeros_like(numbers))
    targets = Targets(no_groups, numbers, no_groups, numbers + rows, Ragged(numbers, one_each), none)
    return Batch(pictures("query"), pictures("document"), targets)


if __name__ == "__main__":
    main()
