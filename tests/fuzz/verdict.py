"""How one input ended, and what a kind of input is to the harness."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Outcome = Literal["right", "refused", "skipped", "wrong", "traceback", "unnamed", "hang", "crash"]
GOOD: tuple[Outcome, ...] = ("right", "refused", "skipped")
OUTCOMES: tuple[Outcome, ...] = (*GOOD, "wrong", "traceback", "unnamed", "hang", "crash")


@dataclass(frozen=True)
class Verdict:
    """right: all of the input was read, and as the reference reads it. skipped: some rows were, the others listed.

    refused: an error of ours that names the input. unnamed: one that does not. wrong: something else was read than the
    input holds. traceback: an exception that is none of ours. hang, crash: the process did not come back.
    """

    outcome: Outcome
    detail: str = ""


class Kind(Protocol):
    """A kind of input. Made once for each process, with a folder of its own for what does not change."""

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """Make an input in the empty `folder`, read it with the package, and judge what came of it.

        May raise; VembedError counts as refused, all else as a traceback.
        """
        ...
