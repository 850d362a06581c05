"""The work of `vembed demo`: prepare real models and pictures, then run the ordinary commands on them."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.demo.files import prepare
from vembed.demo.recipe import EPOCHS, write_recipe
from vembed.errors import VembedError
from vembed.evaluation.rendering.tables import text_table
from vembed.training.run.folder import RunFolder
from vembed.utils.lock import lock_folder

_FIGURES = ("recall@1", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class DemoResult:
    """The files that show the gain, and the same as a table."""

    table: str
    report: Path
    metrics: Path
    final: Path


class DemoStepError(VembedError):
    """A command of the demo failed; it has printed why. Exits as that command did."""

    def __init__(self, command: str, exit_code: int) -> None:
        super().__init__(f"`{command}` failed; call the demo again to go on from where it stopped")
        self.exit_code = exit_code


def demo(folder: Path, *, quick: bool, say: Callable[[str], None]) -> DemoResult:
    """Run the demo in `folder`; what an earlier call finished there is reused. `say` gets the lines to show.

    quick: one epoch, for a look. Raises DemoStepError when a command fails, UsageError while another demo runs there.
    """
    with lock_folder(folder, f"the demo's folder {folder}"):
        return _demo(folder, quick=quick, say=say)


def _demo(folder: Path, *, quick: bool, say: Callable[[str], None]) -> DemoResult:
    say(f"Preparing the emoji data set and two pretrained models in {folder}")
    recipe = write_recipe(prepare(folder), folder, epochs=1 if quick else EPOCHS)
    run = folder / "run"
    if not (run / "final").is_dir():
        _vembed(["train", str(recipe), *_resume(run), "--report=false"], say)
    report = run / "report"
    if not (report / "metrics.json").is_file():
        _vembed(["evaluate", str(run)], say)
    return DemoResult(
        table=_before_and_after(report / "metrics.json"),
        report=report / "report.html",
        metrics=report / "metrics.json",
        final=run / "final",
    )


def _before_and_after(metrics: Path) -> str:
    """Base -> tuned in percent, a line per test set."""
    measured = json.loads(metrics.read_text(encoding="utf-8"))
    rows = [("test set", *_FIGURES)]
    for name, tuned in measured["tuned"].items():
        base = measured["base"][name]
        rows.append((name, *(f"{100 * base[figure]:.1f} -> {100 * tuned[figure]:.1f}" for figure in _FIGURES)))
    return text_table(rows)


def _resume(run: Path) -> list[str]:
    """Goes on with a run that was interrupted; starts one that never wrote a checkpoint anew."""
    folder = RunFolder(run)
    if folder.checkpoints():
        return ["--resume_from_checkpoint=latest"]
    return ["--overwrite_output_dir"] if folder.contents() else []


def _vembed(words: Sequence[str], say: Callable[[str], None]) -> None:
    command = shlex.join(["vembed", *words])
    say(f"\n$ {command}")
    code = subprocess.run([sys.executable, "-m", "vembed", *words], check=False).returncode
    if code:
        raise DemoStepError(command, code if code > 0 else 1)
