"""Functions run by several real processes in one gloo group, for tests of what ranks exchange."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

Results = dict[str, Tensor]


def run_ranks(function: Callable[..., Results], folder: Path, *arguments: str, num_ranks: int = 2) -> list[Results]:
    """`function(rank, *arguments)` in each of `num_ranks` processes; what each returned, in order of ranks.

    The function stands at the top of a module of the tests. A process that fails ends the test with what it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.ranks", function.__module__, function.__name__, str(folder), *arguments]
    processes = [_start(command, rank, num_ranks) for rank in range(num_ranks)]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(printed)
    return [torch.load(_result(folder, rank), weights_only=True) for rank in range(num_ranks)]


def _start(command: list[str], rank: int, num_ranks: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.pt"


def _main(module: str, name: str, folder: str, *arguments: str) -> None:
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_ranks)
    results = getattr(importlib.import_module(module), name)(rank, *arguments)
    torch.save(results, _result(Path(folder), rank))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
