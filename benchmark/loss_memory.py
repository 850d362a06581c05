"""Memory and time of a loss alone, value and gradient: the full matrix of scores against strips of it.

    python benchmark/loss_memory.py [--loss infonce] [--classes 4] [--sizes 2048 4096 8192 16384 32768 65536]

As many queries as documents, random vectors of width 512 with a gradient, temperature learned. Each query has one
document of its own; with --classes, all those of its class: of four classes, a quarter of all scores are of positives.
Each size and form has a process of its own. Memory is how far the peak of resident memory rises over that of the
embeddings themselves (VmHWM); it holds their gradients too. The full matrix is measured up to --most_full and computed
beyond, as its largest measured size times the square of the ratio (marked ~). Time is processor time on one thread.
Values and gradients must agree.
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMS = ("full", "strips")
WIDTH = 512
TOLERANCE = 1e-5


def main() -> None:
    """Run every size in both forms, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="infonce")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16_384, 32_768, 65_536])
    parser.add_argument("--most_full", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--worker", nargs=3, metavar=("FORM", "SIZE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options, *options.worker)
        return
    classes = f", rows in {options.classes} classes" if options.classes else ""
    print(f"loss {options.loss}{classes}, width {WIDTH}, processor seconds on one thread")
    print(f"{'queries':>8} {'full MiB':>10} {'strips MiB':>11} {'memory':>8} {'full s':>8} {'strips s':>9} {'time':>6}")
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print a line per size; memory and time are strips over full."""
    largest: tuple[int, dict[str, float]] | None = None
    for size in options.sizes:
        strips = run(options, "strips", size, folder / "strips")
        if size <= options.most_full:
            full = run(options, "full", size, folder / "full")
            check(folder)
            largest, mark = (size, full), " "
        else:
            assert largest is not None, "the first size must be one of the measured ones"
            full, mark = {name: value * (size / largest[0]) ** 2 for name, value in largest[1].items()}, "~"
        memory, seconds = (strips[name] / full[name] for name in ("mib", "seconds"))
        print(
            f"{size:>8} {mark}{full['mib']:>9,.0f} {strips['mib']:>11,.0f} {'1/' + format(1 / memory, '.1f'):>8}"
            f" {mark}{full['seconds']:>7.1f} {strips['seconds']:>9.1f} {seconds:>5.2f}x",
            flush=True,
        )


def run(options: argparse.Namespace, form: str, size: int, file: Path) -> dict[str, float]:
    """What a process of its own measures; its value and gradients are in `file`."""
    command = [sys.executable, __file__, "--loss", options.loss, "--repeats", str(options.repeats)]
    command += ["--classes", str(options.classes)] if options.classes else []
    command += ["--worker", form, str(size), str(file)]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def check(folder: Path) -> None:
    """Refuse figures of two forms that do not give the same numbers."""
    import torch

    ours, theirs = (torch.load(folder / form) for form in FORMS)
    for one, other in zip(ours, theirs, strict=True):
        difference = float((one - other).norm() / other.norm())
        assert difference < TOLERANCE, difference


def work(options: argparse.Namespace, form: str, size: str, file: str) -> None:
    """Differentiate once, save value and gradients, print seconds and MiB as JSON."""
    import torch

    from vembed.losses import strips
    from vembed.losses.factory import LossFactory
    from vembed.losses.settings import LossSettings
    from vembed.types import Embeddings
    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes

    torch.set_num_threads(1)
    strips.DENSE_SCORES = sys.maxsize if form == "full" else 0
    draw = torch.Generator().manual_seed(0)
    rows = int(size)
    sides = [torch.randn(rows, WIDTH, generator=draw).requires_grad_() for _ in range(2)]
    scale = torch.tensor([3.0], requires_grad=True)
    objective = LossFactory.create(LossSettings(loss_type=options.loss))

    def differentiate(number: int):
        queries, documents = (Embeddings(side[:number]) for side in sides)
        loss = objective(queries, documents, pairs(number, options.classes), logit_scale=scale)
        return loss.detach(), *torch.autograd.grad(loss, [*sides, scale])

    differentiate(64)  # loads the library of matrix products, with its buffers
    cpu = torch.device("cpu")
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    seconds = []
    for _ in range(options.repeats):
        start = time.process_time()
        results = differentiate(rows)
        seconds.append(time.process_time() - start)
    print(json.dumps({"seconds": min(seconds), "mib": peak_memory_mib(cpu) - loaded}))
    torch.save([result.clone() for result in results], file)


def pairs(number: int, classes: int | None):
    """Targets of as many rows, each with one document of its own, and its place in one of the classes."""
    import torch

    from vembed.types import Ragged, Targets

    numbers = torch.arange(number)
    groups = numbers % classes if classes else torch.full((number,), -1)
    return Targets(
        query_groups=groups,
        query_hashes=numbers,
        document_groups=groups,
        document_hashes=numbers + number,
        positives=Ragged(numbers, torch.ones_like(numbers)),
        negatives=Ragged(numbers[:0], torch.zeros_like(numbers)),
    )


if __name__ == "__main__":
    main()
