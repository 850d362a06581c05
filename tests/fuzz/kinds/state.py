"""Run folders with damage in one file, resumed. The reference is the run that nothing was done to."""

import random
import shutil
from pathlib import Path

from safetensors.torch import load_file

from tests.fuzz.mutations import mutate_file
from tests.fuzz.verdict import Verdict
from tests.tiny import tiny_bert
from vembed.trainer import Trainer

_STATE = ("training_state.json", "training_state.safetensors", "vembed_config.json", "vembed_heads.safetensors")
_RUN = ("run.json", "split.json", "metrics.jsonl", "config.yaml")


class RunFolders:
    """Copies of a run of four steps that stopped after two."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = (f'{{"query": "query {number}", "positive": "document {number}"}}\n' for number in range(24))
        (folder / "pairs.jsonl").write_text("".join(lines))
        self._settings = {
            "model_name": tiny_bert(folder / "bert"),
            "data_path": str(folder / "pairs.jsonl"),
            "retrieval_mode": "t2t",
            "batch_size": 4,
            "val_fraction": 0.2,
            "max_steps": 4,
            "save_steps": 2,
            "eval_steps": 2,
            "bootstrap_samples": 0,
            "report": False,
            "mixed_precision": "no",
        }
        self._stopped, whole = folder / "stopped", folder / "whole"
        Trainer(**self._settings).train(output_dir=str(whole))
        shutil.copytree(whole, self._stopped)
        shutil.rmtree(self._stopped / "checkpoint-4")
        shutil.rmtree(self._stopped / "final")
        shutil.rmtree(self._stopped / "best")
        self._expected = load_file(whole / "checkpoint-4" / "model.safetensors")

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """One file of the copy damaged, and the run taken on to its end."""
        run = folder / "run"
        shutil.copytree(self._stopped, run)
        checkpoint = run / "checkpoint-2"
        rest = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in _STATE)
        named = [*(checkpoint / name for name in _STATE), *(run / name for name in _RUN)]
        mutate_file(draw.choice([path for path in named if path.exists()] * 2 + rest), draw)
        Trainer(**self._settings).train(output_dir=str(run), resume_from_checkpoint="latest")
        weights = load_file(run / "checkpoint-4" / "model.safetensors")
        same = weights.keys() == self._expected.keys() and all(weights[k].equal(self._expected[k]) for k in weights)
        return Verdict("right") if same else Verdict("wrong", "the resumed run has other weights")
