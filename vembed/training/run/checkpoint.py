"""Checkpoints: the deployable model, and beside it what it takes to go on exactly. Safetensors and JSON, no pickles.

    checkpoint-<step>/   the model's own files
        training_state.safetensors   optimizer/<parameter>/<key>, rng/<generator>, classes/keys and classes/weight
        training_state.json          counters, best so far, versions, the run's settings and data

With LoRA the model's files are the adapters and the heads, as they are trained; the base is named in them. `final/` has
them merged, unless `save_adapter_only`.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vembed.errors import CheckpointError, ConfigError, NotFiniteError
from vembed.losses.class_weights import ClassWeights
from vembed.model.export import merge_folder
from vembed.model.folder.find import SPEC_FILE, TRAINING_FILE
from vembed.model.learning.lora import has_adapters
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.training.rng import capture_rng, restore_rng
from vembed.training.run.compatibility import check_same_run, versions
from vembed.training.run.folder import RunFolder, checkpoint_step
from vembed.training.run.tensors import (
    Named,
    checksum,
    load_optimizer_tensors,
    named_parameters,
    optimizer_tensors,
    with_prefix,
)
from vembed.training.state import Best, TrainState
from vembed.utils.files import atomic_folder

_log = logging.getLogger(__name__)
_FORMAT = 1
_RNG = "rng/"
_CLASSES = "classes/"
STATE_FILE = "training_state.json"


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint must agree on with the run that continues it: flat settings (as JSON holds them), and rows per
    training set. `defaults`: of all settings. `provenance` goes into the deployable model's own record. `start`: a sum
    over the weights that the run starts from, where it goes on comparing with them."""

    settings: Mapping[str, object]
    defaults: Mapping[str, object]
    rows: Mapping[str, int]
    provenance: Mapping[str, object]
    start: int | None = None


@dataclass(frozen=True)
class Checkpoints:
    """Writes, rotates and reads the checkpoints of one run."""

    run: RunFolder
    model: VisualRetrievalModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    facts: RunFacts
    settings: ModelSettings
    limit: int
    merge_final: bool = True
    classes: ClassWeights | None = None

    def save(self, state: TrainState) -> Path:
        """Write checkpoint-<step>, then delete the oldest over the limit.

        Raises CheckpointError when the disk refuses, NotFiniteError for weights that are no numbers; what was there
        before is untouched then.
        """
        self._check_finite(state)
        folder = self.run.checkpoint(state.step)
        with atomic_folder(folder) as new:
            self._save_model(new, state)
            save_file(self._tensors(), new / TRAINING_FILE)
            (new / STATE_FILE).write_text(json.dumps(self._record(state), indent=2), encoding="utf-8")
        _log.info("wrote %s", folder)
        for old in _superseded(self.run, state.step, self.limit):
            shutil.rmtree(old)
        return folder

    def save_best(self, state: TrainState) -> Path:
        """Write best/, a deployable model without training state, with the figure that chose it."""
        assert state.best is not None
        self._check_finite(state)
        with atomic_folder(self.run.best) as new:
            self._save_model(new, state)
        _log.info("step %d is the best so far: %s %.4f", state.step, state.best.metric, state.best.value)
        return self.run.best

    def write_final(self, state: TrainState) -> Path:
        """Write final/: what best/ holds, or the model as it is when nothing was validated; adapters are merged."""
        merged = self.merge_final and has_adapters(self.model.model)
        with atomic_folder(self.run.final) as new:
            if state.best is None:
                self._save_model(new, state, merge_adapters=merged)
            elif merged:
                merge_folder(self.run.best, new, self._as_held())
            else:
                shutil.copytree(self.run.best, new, dirs_exist_ok=True)
        source = "the last step" if state.best is None else f"best/ (step {state.best.step})"
        _log.info("%s holds %s%s", self.run.final, source, ", adapters merged" if merged else "")
        return self.run.final

    def resume(self, folder: Path) -> TrainState:
        """Put model, optimiser, scaler and random generators where `save` found them; gives the state.

        Raises ConfigError when settings or data changed in a way that matters, CheckpointError when the folder is
        damaged.
        """
        try:
            record = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            tensors = load_file(folder / TRAINING_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
        if record["format"] != _FORMAT:
            raise CheckpointError(f"{folder} was written in format {record['format']}; this version reads {_FORMAT}")
        check_same_run(
            record["settings"],
            self.facts.settings,
            defaults=self.facts.defaults,
            saved_rows=record["rows"],
            rows=self.facts.rows,
        )
        if record.get("start") != self.facts.start:
            raise CheckpointError(
                f"the run of {folder} compares with the model that it started from, and what is opened now is another:"
                " its files were changed; put them back, or start a new run"
            )
        if self.classes is not None:
            _load_classes(self.classes, with_prefix(tensors, _CLASSES))
        self._load_parameters(folder, record)
        load_optimizer_tensors(self._named(), self.optimizer, tensors)
        if self.scaler is not None and record["scaler"] is not None:
            self.scaler.load_state_dict(record["scaler"])
        restore_rng(with_prefix(tensors, _RNG))
        state = TrainState.from_dict(record["state"])
        state.best = self._kept_best()
        return state

    def _check_finite(self, state: TrainState) -> None:
        learning = [(name, parameter) for name, parameter in self._named() if parameter.requires_grad]
        broken = [name for name, parameter in learning if not parameter.isfinite().all()]
        if broken:
            raise NotFiniteError(
                f"step {state.step}: after it the model's weights are not finite, such as {broken[0]}, and are not"
                " written; lower the learning rate"
            )

    def _kept_best(self) -> Best | None:
        """What best/ holds. It may be from a later step than the checkpoint, if the run died between the two."""
        file = self.run.best / SPEC_FILE
        if not file.exists():
            return None
        written = json.loads(file.read_text(encoding="utf-8"))
        return Best(step=written["step"], **written["best"])

    def _as_held(self) -> ModelSettings:
        """For opening the model in the dtype that its frozen weights have in the run."""
        return self.settings.for_opening().model_copy(update={"torch_dtype": self.settings.torch_dtype})

    def _save_model(self, folder: Path, state: TrainState, *, merge_adapters: bool = False) -> None:
        best = None if state.best is None else {"metric": state.best.metric, "value": state.best.value}
        extra = {**self.facts.provenance, "step": state.step, "best": best}
        self.model.save_pretrained(folder, extra, merge_adapters=merge_adapters)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = optimizer_tensors(self._named(), self.optimizer)
        if self.classes is not None:
            tensors |= {f"{_CLASSES}{name}": value for name, value in self.classes.state_dict().items()}
        tensors |= {f"{_RNG}{name}": value for name, value in capture_rng().items()}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def _named(self) -> Named:
        """All that may learn, by name: the model's parameters, then the weights of classes."""
        named = named_parameters(self.model.model)
        return named if self.classes is None else [*named, (f"{_CLASSES}weight", self.classes.weight)]

    def _record(self, state: TrainState) -> dict[str, Any]:  # Any: JSON
        return {
            "format": _FORMAT,
            "state": state.to_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "weights": checksum(self._named()),
            "start": self.facts.start,
            "settings": dict(self.facts.settings),
            "rows": dict(self.facts.rows),
            "versions": versions(),
        }

    def _load_parameters(self, folder: Path, record: Mapping[str, Any]) -> None:
        """The weights as they were trained; their checksum tells whether the files hold them to the bit."""
        if has_adapters(self.model.model):
            self.model.load_adapters(folder)
        else:
            saved = VisualRetrievalModel.from_pretrained(str(folder), self.settings.for_opening())
            self.model.model.load_state_dict(saved.model.state_dict())
        if checksum(self._named()) != record["weights"]:
            raise CheckpointError(f"the weights in {folder} are not those that were trained; its files were changed")


def _load_classes(classes: ClassWeights, saved: Mapping[str, Tensor]) -> None:
    """The weights as they were trained. Raises ConfigError when the data have other classes now."""
    before, now = (set(keys.tolist()) for keys in (saved["keys"], classes.keys))
    if before != now:
        raise ConfigError(
            f"the checkpoint was trained on {len(before)} classes; {len(before - now)} of them are gone from the"
            f" training data, and {len(now - before)} are new. Continuing would be exact no longer: give the rows the"
            " groups that they had, or start a new run from the checkpoint's weights with model_name: <checkpoint"
            " folder> and another output_dir"
        )
    classes.load_state_dict(dict(saved))


def _superseded(run: RunFolder, step: int, limit: int) -> list[Path]:
    """The oldest checkpoints over the limit; never the one of `step`, which was just written whole."""
    others = [path for path in run.checkpoints() if checkpoint_step(path) != step]
    return others[: max(0, len(others) - (limit - 1))]
