"""The memory and the speed of the demo's training under each allocator that this machine has.

    python benchmark/allocators.py [--folder output/allocators] [--steps 60] [--preload NAME=PATH]

Each allocator has a `vembed train` of the demo's recipe for --steps steps in a process of its own, without validation
and report: glibc as it is, glibc with one of two settings, and libraries that are preloaded where the loader knows them
(Debian's packages libtcmalloc-minimal4 and libjemalloc2); --preload adds one by its path. Peak resident memory (VmHWM)
and samples per second are those of the last line of metrics.jsonl. Linux only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from machine import machine_in_words

from vembed.demo.files import prepare
from vembed.demo.recipe import EPOCHS, write_recipe

GLIBC = {
    "glibc": {},
    "glibc, `MALLOC_ARENA_MAX=2`": {"MALLOC_ARENA_MAX": "2"},
    "glibc, `MALLOC_MMAP_THRESHOLD_` of 16 MiB": {"MALLOC_MMAP_THRESHOLD_": str(2**24)},
}
LIBRARIES = {"tcmalloc": "libtcmalloc_minimal.so.4", "jemalloc": "libjemalloc.so.2"}


def main() -> None:
    """Train under each allocator, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/allocators"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--preload", metavar="NAME=PATH", action="append", default=[])
    options = parser.parse_args()
    recipe = write_recipe(prepare(options.folder), options.folder, epochs=EPOCHS)
    print(machine_in_words())
    print("| allocator | peak, MiB | samples/s |\n|---|---|---|")
    for name, variables in (GLIBC | dict(preloads(options.preload))).items():
        peak, rate = train(recipe, options.folder / "run", options.steps, variables)
        print(f"| {name} | {peak:,.0f} | {rate:.0f} |", flush=True)


def preloads(given: list[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each library's name and the variable that preloads it: those that the loader knows, then those given."""
    known = subprocess.run(["/sbin/ldconfig", "-p"], check=True, stdout=subprocess.PIPE, text=True).stdout
    for name, file in LIBRARIES.items():
        found = re.search(rf"^\s*{re.escape(file)} .*=> (.+)$", known, re.MULTILINE)
        if found:
            yield name, {"LD_PRELOAD": found[1]}
    for entry in given:
        name, _, path = entry.partition("=")
        yield name, {"LD_PRELOAD": path}


def train(recipe: Path, run: Path, steps: int, variables: Mapping[str, str]) -> tuple[float, float]:
    """The peak in MiB and the last samples per second of one training under `variables`."""
    words = ["train", recipe, f"--max_steps={steps}", f"--output_dir={run}", "--overwrite_output_dir"]
    words += ["--report=false", "--val_data_path=null", "--val_fraction=0"]
    command = [sys.executable, "-m", "vembed", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | dict(variables))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return last["peak_memory_mib"], last["samples_per_second"]


if __name__ == "__main__":
    main()
