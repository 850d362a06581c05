"""How long `import vembed` and `vembed --help` take: medians over fresh processes, beside the limits they must keep.

.venv/bin/python benchmark/import_time.py
"""

import statistics
import subprocess
import sys
import time

RUNS = 9
COMMANDS = {
    "python -c pass": (["-c", "pass"], None),
    "import vembed": (["-c", "import vembed"], 0.3),
    "vembed --help": (["-m", "vembed", "--help"], 0.7),
    "vembed train --help": (["-m", "vembed", "train", "--help"], None),
    "vembed config show": (["-m", "vembed", "config", "show"], None),
}


def seconds(arguments: list[str]) -> float:
    """The wall time of one fresh process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print a line per command; the first run of each only warms the disk cache."""
    slow = []
    for name, (arguments, limit) in COMMANDS.items():
        times = [seconds(arguments) for _ in range(RUNS + 1)][1:]
        median = statistics.median(times)
        print(f"{name:<22}{median:6.3f} s   (fastest {min(times):.3f}, limit {limit or '-'})")
        if limit is not None and median > limit:
            slow.append(name)
    sys.exit(f"over the limit: {', '.join(slow)}" if slow else 0)


if __name__ == "__main__":
    main()
