"""Prints what the demo reaches with seeds 0, 1 and 2: base and tuned figures on the test emoji, and training time.

A second table holds every row of the queries of picture and text (m2i, m2t): the base by picture, by text and by both,
and base and tuned with the query's picture in the gallery and without it. The base of the first table is the best row.

    python benchmark/demo_seeds.py [--folder output/demo-seeds] [--seeds 0 1 2]

Each seed is the demo's own `vembed train` and `vembed evaluate` with another `--seed` and `--output_dir`. The
checkpoint is chosen on the validation emoji, and so was the recipe, but for the share of changes: it was halved for a
shorter training after test figures were seen, which fell by it. Nothing here chooses.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.demo.files import prepare
from vembed.demo.recipe import EPOCHS, write_recipe

FIGURES = (
    ("t2i", "recall@1"),
    ("t2i", "recall@10"),
    ("i2t", "recall@10"),
    ("i2i", "recall@1"),
    ("i2i", "recall@10"),
    ("t2t", "recall@1"),
    ("m2i", "recall@1"),
    ("m2i", "recall@10"),
    ("m2t", "recall@10"),
)
ROW_FIGURES = ("recall@1", "recall@10")


@dataclass(frozen=True)
class SeedResult:
    """base and tuned: a value in percent for each of FIGURES. rows: each way of the composed sets in words, and its
    values in percent for each of ROW_FIGURES."""

    seed: int
    base: tuple[float, ...]
    tuned: tuple[float, ...]
    rows: dict[tuple[str, ...], tuple[float, ...]]
    training_seconds: float


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/demo-seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    recipe = write_recipe(prepare(arguments.folder), arguments.folder, epochs=EPOCHS)
    results = [run_seed(recipe, arguments.folder / f"seed-{seed}", seed) for seed in arguments.seeds]
    print("\n".join([*table(results), "", *row_table(results)]))


def run_seed(recipe: Path, run: Path, seed: int) -> SeedResult:
    """Train and evaluate one seed into `run`, unless it is there; its figures."""
    seconds_file = run / "training_seconds"
    if not (run / "final").is_dir():
        started = time.perf_counter()
        vembed(
            "train", str(recipe), f"--seed={seed}", f"--output_dir={run}", "--report=false", "--overwrite_output_dir"
        )
        seconds_file.write_text(str(time.perf_counter() - started))
    if not (run / "report" / "metrics.json").is_file():
        vembed("evaluate", str(run))
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    base, tuned = (tuple(100 * metrics[label][name][metric] for name, metric in FIGURES) for label in ("base", "tuned"))
    rows = {
        (name, row["model"], row["query"], row["query_image"], row["compared_by"]): tuple(
            100 * row["metrics"][metric] for metric in ROW_FIGURES
        )
        for name, every in metrics["rows"].items()
        for row in every
    }
    return SeedResult(seed, base, tuned, rows, float(seconds_file.read_text()))


def vembed(*words: str) -> None:
    """Run a command of ours; its output goes to stderr."""
    subprocess.run([sys.executable, "-m", "vembed", *words], check=True, stdout=sys.stderr)


def table(results: Sequence[SeedResult]) -> list[str]:
    """A Markdown table: one row per seed, and the mean."""
    names = [f"{name} {metric.replace('recall@', 'R@')}" for name, metric in FIGURES]
    lines = [f"| | {' | '.join(names)} | training |", "|---|" + "---|" * (len(names) + 1)]
    for result in results:
        lines.append(row(f"base, seed {result.seed}", result.base, ""))
        lines.append(row(f"tuned, seed {result.seed}", result.tuned, f"{result.training_seconds:.0f} s"))
    for label, values in (("base", [one.base for one in results]), ("tuned", [one.tuned for one in results])):
        means = [statistics.mean(column) for column in zip(*values, strict=True)]
        seconds = statistics.mean(one.training_seconds for one in results)
        lines.append(row(f"**{label}, mean**", means, f"{seconds:.0f} s" if label == "tuned" else ""))
    return lines


def row_table(results: Sequence[SeedResult]) -> list[str]:
    """A Markdown table: every way in which composed queries were measured, means over the seeds."""
    metrics = " | ".join(metric.replace("recall@", "R@") for metric in ROW_FIGURES)
    lines = [f"| set | model | query | its picture in the gallery | compared by | {metrics} |", "|---" * 7 + "|"]
    for words in results[0].rows:
        columns = zip(*(one.rows[words] for one in results), strict=True)
        values = " | ".join(f"{statistics.mean(column):.1f}" for column in columns)
        lines.append(f"| {' | '.join(words)} | {values} |")
    return lines


def row(name: str, values: Sequence[float], time_text: str) -> str:
    """One line of the table."""
    return f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {time_text} |"


if __name__ == "__main__":
    main()
