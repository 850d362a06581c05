"""The process that tries inputs: python -m tests.fuzz.child KIND SEED FIRST STOP. A line before and after each."""

import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.verdict import Kind, Verdict
from vembed.errors import VembedError


def judge(kind: Kind, draw: random.Random, folder: Path) -> Verdict:
    """The verdict on one input; an error of ours has to name the file that it speaks of."""
    try:
        return kind.try_one(draw, folder)
    except VembedError as error:
        message = str(error)
        named = str(folder) in message or any(path.name in message for path in folder.rglob("*"))
        return Verdict("refused" if named else "unnamed", message[:200])
    except BaseException as error:  # also a panic of a library in Rust, which is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict("traceback", f"{type(error).__name__}: {str(error)[:160]} ({place.filename}:{place.lineno})")


def main() -> None:
    """Try the inputs that the command line names."""
    name, seed, first, stop = sys.argv[1], *map(int, sys.argv[2:5])
    limit = int(os.environ["FUZZ_MEMORY_BYTES"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    logging.disable()
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no verdict
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        kind = KINDS[name](Path(scratch, "fixed"))
        for number in range(first, stop):
            folder = Path(scratch, f"input-{number}")
            folder.mkdir()
            print("begin", number, sep="\t", file=results, flush=True)
            verdict = judge(kind, random.Random(f"{name} {seed} {number}"), folder)
            detail = " ".join(verdict.detail.encode("ascii", "backslashreplace").decode().split())
            print("end", number, verdict.outcome, detail, sep="\t", file=results, flush=True)
            if "FUZZ_KEEP" not in os.environ:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
