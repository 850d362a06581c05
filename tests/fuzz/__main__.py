"""Feed the package damaged inputs and count what becomes of them.

    python -m tests.fuzz [--inputs 10000] [--seed S] [--kinds rows pictures ...]

Without --seed a new one is drawn and printed. Exits with 1 when an input ended in a traceback, a hang, a crash, a wrong
pair or an error that names no file, or when too few were read right. `--first N --inputs 1 --kinds K` tries one again.
"""

import argparse
import random
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.kinds import KINDS, SHARES
from tests.fuzz.runner import Tally, run_inputs
from tests.fuzz.verdict import GOOD, OUTCOMES

LEAST_RIGHT = 0.2
_PART = 500  # inputs of one process


def run(num_inputs: int, *, seed: int, kinds: list[str], first: int = 0, processes: int = 2) -> dict[str, Tally]:
    """The tally of each kind; the inputs are divided by SHARES."""
    total = sum(SHARES[kind] for kind in kinds)
    counts = {kind: max(1, round(num_inputs * SHARES[kind] / total)) for kind in kinds}
    parts = [
        (kind, range(first + start, first + min(start + _PART, count)))
        for kind, count in counts.items()
        for start in range(0, count, _PART)
    ]
    tallies = {kind: Tally() for kind in kinds}
    with ThreadPoolExecutor(processes) as threads:
        for (kind, _), part in zip(parts, threads.map(lambda part: run_inputs(*part, seed=seed), parts), strict=True):
            tallies[kind].counts += part.counts
            tallies[kind].bad += part.bad
    return tallies


def problems(tallies: dict[str, Tally]) -> list[str]:
    """What is wrong, a line each; empty if nothing is."""
    found = [
        f"{kind} {number}: {verdict.outcome}: {verdict.detail}"
        for kind, tally in tallies.items()
        for number, verdict in tally.bad
    ]
    inputs = sum(tally.num_inputs for tally in tallies.values())
    right = sum(tally.counts["right"] for tally in tallies.values())
    if right < LEAST_RIGHT * inputs:
        found.append(
            f"only {right} of {inputs} inputs were read right; a reader that refuses everything finds no fault"
        )
    return found


def table(tallies: dict[str, Tally]) -> str:
    """The counts, a line for each kind and their sum."""
    lines = ["".join(f"{name:>10}" for name in ("kind", "inputs", *OUTCOMES))]
    for kind, tally in tallies.items():
        lines.append(
            "".join(f"{value:>10}" for value in (kind, tally.num_inputs, *(tally.counts[o] for o in OUTCOMES)))
        )
    sums = [sum(tally.counts[outcome] for tally in tallies.values()) for outcome in OUTCOMES]
    lines.append("".join(f"{value:>10}" for value in ("all", sum(sums), *sums)))
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    tallies = run(
        arguments.inputs,
        seed=arguments.seed,
        kinds=arguments.kinds,
        first=arguments.first,
        processes=arguments.processes,
    )
    print(table(tallies))
    found = problems(tallies)
    print("\n".join(found) or f"nothing but {', '.join(GOOD)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
