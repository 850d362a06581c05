"""Late-interaction scores of queries x documents: time and memory of vembed against sentence-transformers' `maxsim`.

    python benchmark/maxsim.py [--queries 1000] [--documents 10000] [--lengths ragged|fixed]

Random unit vectors of width 128: queries of 32 tokens, documents of 50 to 206 tokens ("ragged") and of 128 ("fixed").
sentence-transformers is given them in both of its forms, a list of tensors and one padded tensor with its mask (none
where all are of one length); the ratios are against the faster. Every contender has a process of its own and scores all
in one call. Time is processor time on one thread: other work on the machine does not count. Memory is how far the peak
of resident memory rises over that of the loaded embeddings (VmHWM). The scores must be equal.
"""
# ruff: noqa: PLC0415 - the parent process imports nothing heavy

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine_in_words

CONTENDERS = ("vembed", "list", "padded")
LENGTHS = {"ragged": (50, 206), "fixed": (128, 128)}
QUERY_TOKENS, WIDTH = 32, 128
TOLERANCE = 1e-4  # a score is a sum of 32 products of unit vectors


def main() -> None:
    """Run the contenders one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--lengths", choices=LENGTHS, nargs="+", default=list(LENGTHS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options, *options.worker)
        return
    print(machine_in_words())
    print(f"{options.queries} queries x {options.documents} documents, threads: {options.threads}")
    print(f"{'documents':<10} {'contender':<30} {'seconds':>8} {'MiB':>6} {'time':>6} {'memory':>7}")
    for lengths in options.lengths:
        compare(options, lengths)


def compare(options: argparse.Namespace, lengths: str) -> None:
    """Print a line per contender; the ratios say how many times as much theirs takes."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        results = {name: run(options, lengths, name, Path(folder) / name) for name in CONTENDERS}
        scores = {name: torch.load(Path(folder) / name) for name in CONTENDERS}
    own = results["vembed"]
    for name, result in results.items():
        torch.testing.assert_close(scores[name], scores["vembed"], rtol=0, atol=TOLERANCE)
        full_name = name if name == "vembed" else f"sentence-transformers, {name}"
        ratios = f"{result['seconds'] / own['seconds']:>5.2f}x {result['mib'] / own['mib']:>6.2f}x"
        print(f"{lengths:<10} {full_name:<30} {result['seconds']:>8.1f} {result['mib']:>6.0f} {ratios}", flush=True)


def run(options: argparse.Namespace, lengths: str, contender: str, file: Path) -> dict[str, float]:
    """What a process of its own measures; its scores are in `file`."""
    sizes = [
        "--queries",
        str(options.queries),
        "--documents",
        str(options.documents),
        "--threads",
        str(options.threads),
    ]
    command = [sys.executable, __file__, *sizes, "--lengths", lengths, "--worker", contender, str(file)]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def work(options: argparse.Namespace, contender: str, file: str) -> None:
    """Score once, save the scores, print seconds and MiB as JSON."""
    import torch

    from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes

    torch.set_num_threads(options.threads)
    score = scorer(contender, options, LENGTHS[options.lengths[0]])
    cpu = torch.device("cpu")
    loaded = used_memory_bytes(cpu) / MIB
    reset_peak_memory(cpu)
    start = time.process_time()
    with torch.inference_mode():
        scores = score()
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "mib": peak_memory_mib(cpu) - loaded}))
    torch.save(scores, file)


def scorer(contender, options, lengths):
    """A function that scores all, with the embeddings in the form that the contender takes."""
    import torch
    from sentence_transformers.util import maxsim as their_maxsim

    from vembed.scoring import maxsim
    from vembed.types import Embeddings

    draw = torch.Generator().manual_seed(0)
    shortest, longest = lengths
    counts = torch.randint(shortest, longest + 1, (options.documents,), generator=draw)
    queries = unit(torch.randn(options.queries, QUERY_TOKENS, WIDTH, generator=draw))
    documents = torch.zeros(options.documents, longest, WIDTH)
    for document, count in zip(documents, counts.tolist(), strict=True):
        document[:count] = unit(torch.randn(count, WIDTH, generator=draw))
    mask = None if shortest == longest else torch.arange(longest) < counts[:, None]
    maxsim(
        Embeddings(queries[:64]), Embeddings(documents[:64])
    )  # loads the library of matrix products, with its buffers
    if contender == "vembed":
        return lambda: maxsim(Embeddings(queries), Embeddings(documents, mask))
    if contender == "padded":
        return lambda: their_maxsim(queries, documents, b_mask=mask)
    ragged = [document[:count].clone() for document, count in zip(documents, counts.tolist(), strict=True)]

    return lambda: their_maxsim(list(queries), ragged)


def unit(vectors):
    """Vectors of length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


if __name__ == "__main__":
    main()
