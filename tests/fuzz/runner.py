"""Runs inputs in a process of their own, so that one that hangs or crashes it is found and counted."""

import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.verdict import GOOD, Outcome, Verdict

_ROOT = Path(__file__).parents[2]
_SECONDS_TO_START = 120.0
_MEMORY_BYTES = 12 << 30


@dataclass
class Tally:
    """Outcomes of the inputs of one kind, and the bad ones with their numbers."""

    counts: Counter[Outcome] = field(default_factory=Counter)
    bad: list[tuple[int, Verdict]] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        """All inputs."""
        return self.counts.total()

    def add(self, number: int, verdict: Verdict) -> None:
        """Count an input."""
        self.counts[verdict.outcome] += 1
        if verdict.outcome not in GOOD:
            self.bad.append((number, verdict))


def run_inputs(kind: str, numbers: range, *, seed: int, seconds: float = 30.0) -> Tally:
    """Try inputs `numbers` of this kind, each a function of (kind, seed, number); one over `seconds` hangs."""
    tally = Tally()
    while numbers:
        for number, verdict in _one_process(kind, numbers, seed, seconds):
            tally.add(number, verdict)
            numbers = range(number + 1, numbers.stop)
    return tally


def _one_process(kind: str, numbers: range, seed: int, seconds: float) -> Iterator[tuple[int, Verdict]]:
    """Verdicts until the last input, or until the process hangs or dies."""
    command = [sys.executable, "-m", "tests.fuzz.child", kind, str(seed), str(numbers.start), str(numbers.stop)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"FUZZ_MEMORY_BYTES": str(_MEMORY_BYTES)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment) as process:
        lines = _lines_of(process)
        running, done = None, numbers.start
        while done < numbers.stop:
            line = _next_line(lines, _SECONDS_TO_START if running is None else seconds)
            if line is None:
                break
            word, number, *rest = line.rstrip("\n").split("\t")
            running = int(number) if word == "begin" else None
            if word == "end":
                done = int(number) + 1
                yield int(number), Verdict(rest[0], rest[1])  # type: ignore[arg-type]  # written by child.py
        hung = done < numbers.stop and not _ends_soon(process)
        process.kill()
        process.wait()
    if running is not None:
        yield running, Verdict("hang" if hung else "crash", f"exit code {process.returncode}")
    elif done < numbers.stop:
        raise RuntimeError(f"the process of kind {kind} did not get to its inputs: exit code {process.returncode}")


def _ends_soon(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _lines_of(process: subprocess.Popen[str]) -> "queue.Queue[str | None]":
    """What the process prints, line by line, then None; read in a thread, so that one can wait for it with a limit."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _next_line(lines: "queue.Queue[str | None]", seconds: float) -> str | None:
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return None
