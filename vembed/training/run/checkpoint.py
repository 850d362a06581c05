"""Checkpoints: the deployable model, and beside it the training state to resume to the bit. Safetensors and JSON only.

    checkpoint-<step>/   the model's own files
        training_state.safetensors   optimizer/<parameter>/<key>, rng/<generator>, classes/keys and classes/weight
        training_state.json          counters, GradScaler, versions, the run's settings, rows of its data; checksums of
                                     both files and of the model's tensors, all made while writing
    best/                the model's own files, with the best validation metric
    final/               a copy of best/, or the last weights without validation data; adapters are merged

With LoRA the model's files are the adapters and the heads, as they are trained, and name the base that they belong to.
`final/` has the adapters merged into the base's weights, unless `save_adapter_only`.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
from vembed.training.run.folder import RunFolder, checkpoint_step, read_saved_facts
from vembed.training.run.tensors import (
    NamedParameters,
    byte_sum,
    load_optimizer_tensors,
    named_parameters,
    optimizer_tensors,
    saved_tensors,
    tensor_checksum,
    with_prefix,
)
from vembed.training.state import Best, TrainState
from vembed.utils.files import atomic_folder, remove, sync
from vembed.utils.sealed import CHECKSUM, read_object, sealed, sealed_text, unsealed
from vembed.utils.untrusted import library_errors
from vembed.version import __version__

_log = logging.getLogger(__name__)
_FORMAT = 2
_WITHOUT_CHECKSUMS = 1  # the format before: of the weights a sum of bytes alone
_RNG = "rng/"
_CLASSES = "classes/"
STATE_FILE = "training_state.json"


@dataclass(frozen=True)
class RunIdentity:
    """The facts in which a checkpoint and the run that resumes it must agree.

    settings: flat, as JSON holds them. defaults: of all settings. rows: per training set. provenance: is not compared,
    but goes into the vembed_config.json of each model that is saved. start_checksum: of the weights that the run starts
    from, where a reference of the loss is made of them; else None.
    """

    settings: Mapping[str, object]
    defaults: Mapping[str, object]
    rows: Mapping[str, int]
    provenance: Mapping[str, object]
    start_checksum: str | None = None


@dataclass(frozen=True)
class Checkpoints:
    """Writes, rotates and reads the checkpoints of one run."""

    run: RunFolder
    model: VisualRetrievalModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    identity: RunIdentity
    settings: ModelSettings
    limit: int
    merge_final: bool = True
    classes: ClassWeights | None = None

    def save(self, state: TrainState) -> Path:
        """Write checkpoint-<step>, then delete the oldest over the limit.

        Raises CheckpointError when the disk refuses, NotFiniteError for weights that are not finite; older checkpoints
        are untouched then.
        """
        self._check_writable(state)
        folder, tensors = self.run.checkpoint(state.step), self._tensors()
        with atomic_folder(folder) as new:
            if self.run.metrics.is_file():
                sync(self.run.metrics)  # a checkpoint that is whole has the lines that it counts
            self._save_model(new, state)
            save_file(tensors, new / TRAINING_FILE)
            (new / STATE_FILE).write_bytes(sealed_text(self._record(state, tensors)))
        _log.info("wrote %s", folder)
        for old in _oldest_over_limit(self.run, state.step, self.limit):
            _remove_old(old)
        return folder

    def save_best(self, state: TrainState) -> Path:
        """Write best/: a deployable model without training state. Its spec file has the metric that chose it."""
        assert state.best is not None
        self._check_writable(state)
        with atomic_folder(self.run.best) as new:
            self._save_model(new, state, weights=tensor_checksum(saved_tensors(self.model.model)))
        _log.info("step %d is the best so far: %s %.4f", state.step, state.best.metric, state.best.value)
        return self.run.best

    def write_final(self, state: TrainState) -> Path:
        """Write final/: what best/ holds, or the model as it is when nothing was validated; adapters are merged."""
        self.run.check_held()
        merged = self.merge_final and has_adapters(self.model.model)
        with atomic_folder(self.run.final) as new:
            if state.best is None:
                self._save_model(new, state, merge_adapters=merged)
            elif merged:
                merge_folder(self.run.best, new, self._settings_for_merge())
            else:
                shutil.copytree(self.run.best, new, dirs_exist_ok=True)
        source = "the last step" if state.best is None else f"best/ (step {state.best.step})"
        _log.info("%s holds %s%s", self.run.final, source, ", adapters merged" if merged else "")
        return self.run.final

    def resume(self, folder: Path) -> TrainState:
        """Restore model, optimiser, scaler and random generators to what `save` wrote; returns the state.

        Raises ConfigError when settings or data changed in a way that matters, CheckpointError when the folder is
        damaged.
        """
        record = self._read_record(folder)
        with library_errors(CheckpointError, f"{folder / STATE_FILE} is damaged"):
            check_same_run(
                record["settings"],
                self.identity.settings,
                defaults=self.identity.defaults,
                saved_rows=record["rows"],
                rows=self.identity.rows,
            )
            state = TrainState.from_dict(record["state"])
        self._check_start(folder, record)
        tensors = _read_tensors(folder, record)
        self._check_spec(folder)
        best = self._read_best()
        if self.classes is not None:
            with library_errors(CheckpointError, f"{folder} is not a whole checkpoint"):
                _load_classes(self.classes, with_prefix(tensors, _CLASSES))
        self._load_parameters(folder, record)
        with library_errors(CheckpointError, f"{folder} is not a whole checkpoint"):
            load_optimizer_tensors(self._named_parameters(), self.optimizer, tensors)
            if self.scaler is not None and record["scaler"] is not None:
                self.scaler.load_state_dict(record["scaler"])
            restore_rng(with_prefix(tensors, _RNG))  # last: opening the saved model may have drawn random numbers
        state.best = best
        return state

    def _read_record(self, folder: Path) -> Mapping[str, Any]:  # Any: JSON
        file = folder / STATE_FILE
        try:
            content = read_object(file)
            record = unsealed(content, file)
        except CheckpointError as error:
            raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
        if record.get("format") not in (_FORMAT, _WITHOUT_CHECKSUMS):
            raise CheckpointError(f"{file} is of format {record.get('format')!r}; this version reads {_FORMAT}")
        if record["format"] == _FORMAT and CHECKSUM not in content:
            raise CheckpointError(f"{folder} is not a whole checkpoint: {file} lacks its checksum")
        return record

    def _check_spec(self, folder: Path) -> None:
        """Raise CheckpointError when vembed_config.json is not what was written: it describes another model then."""
        file = folder / SPEC_FILE
        written = read_object(file)
        read_saved_facts(file)
        if written.get("version") == __version__ and written.get("spec") != self.model.spec.model_dump(mode="json"):
            raise CheckpointError(f"{file} is damaged: it describes another model than the one that is trained")

    def _check_start(self, folder: Path, record: Mapping[str, Any]) -> None:  # Any: JSON
        """Refuse to go on beside another reference than the run had. The model must still be as it was opened."""
        now: object = self.identity.start_checksum
        if now is not None and record["format"] == _WITHOUT_CHECKSUMS:
            now = byte_sum(named_parameters(self.model.model))
        if record.get("start") != now:
            raise CheckpointError(
                f"the run of {folder} compares with the model that it started from, and what is opened now is another:"
                " its files were changed; put them back, or start a new run"
            )

    def _check_writable(self, state: TrainState) -> None:
        """Raise NotFiniteError for weights that are no numbers, CheckpointError where another process writes."""
        self.run.check_held()
        trainable = [(name, parameter) for name, parameter in self._named_parameters() if parameter.requires_grad]
        broken = [name for name, parameter in trainable if not parameter.isfinite().all()]
        if broken:
            raise NotFiniteError(
                f"step {state.step}: after it the model's weights are not finite, such as {broken[0]}, and are not"
                " written; lower the learning rate"
            )

    def _read_best(self) -> Best | None:
        """The evaluation that chose best/, from the folder itself; None without best/.

        It may be of a later step than the checkpoint, if the run died between the two; a comparison with the
        checkpoint's own best would then overwrite better weights. Leaves its weights in the model, as they are compared
        with what was written: the end of the run copies them. Raises CheckpointError.
        """
        file = self.run.best / SPEC_FILE
        if not file.exists():
            return None
        written = read_saved_facts(file)
        with library_errors(CheckpointError, f"{file} is damaged"):
            best = Best(step=written["step"], **written["best"])
        if "weights" in written:
            with library_errors(CheckpointError, f"the model in {self.run.best} cannot be opened"):
                self._open_weights(self.run.best)
            if tensor_checksum(saved_tensors(self.model.model)) != written["weights"]:
                raise CheckpointError(
                    f"the weights in {self.run.best} are not those that were written; delete it, and the best from here"
                    " on is kept"
                )
        return best

    def _settings_for_merge(self) -> ModelSettings:
        """Settings that open best/ in the dtype of the run's frozen weights, as adapters were trained beside these."""
        return self.settings.for_opening().model_copy(update={"torch_dtype": self.settings.torch_dtype})

    def _save_model(
        self, folder: Path, state: TrainState, *, merge_adapters: bool = False, weights: str | None = None
    ) -> None:
        """Write the model. weights: their checksum, where vembed_config.json is to have it."""
        best = None if state.best is None else {"metric": state.best.metric, "value": state.best.value}
        facts = {**self.identity.provenance, "step": state.step, "best": best}
        extra = sealed(facts if weights is None else {**facts, "weights": weights})
        self.model.save_pretrained(folder, extra, merge_adapters=merge_adapters)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = optimizer_tensors(self._named_parameters(), self.optimizer)
        if self.classes is not None:
            tensors |= {f"{_CLASSES}{name}": value for name, value in self.classes.state_dict().items()}
        tensors |= {f"{_RNG}{name}": value for name, value in capture_rng().items()}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def _named_parameters(self) -> NamedParameters:
        """The model's parameters by name, frozen ones included, then the class weights of the loss."""
        named = named_parameters(self.model.model)
        return named if self.classes is None else [*named, (f"{_CLASSES}weight", self.classes.weight)]

    def _saved_tensors(self) -> dict[str, Tensor]:
        return saved_tensors(self.model.model, None if self.classes is None else self.classes.weight)

    def _record(self, state: TrainState, tensors: Mapping[str, Tensor]) -> dict[str, Any]:  # Any: JSON
        return {
            "format": _FORMAT,
            "state": state.to_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "weights": tensor_checksum(self._saved_tensors()),
            "tensors": tensor_checksum(tensors),
            "start": self.identity.start_checksum,
            "settings": dict(self.identity.settings),
            "rows": dict(self.identity.rows),
            "versions": versions(),
        }

    def _load_parameters(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Load the weights. Raises CheckpointError when their checksum says that they are not those that were trained.

        They come from the files of the deployable model, which anybody may have replaced since.
        """
        with library_errors(CheckpointError, f"{folder} is not a whole checkpoint"):
            self._open_weights(folder)
            written = record["weights"]
        old = record["format"] == _WITHOUT_CHECKSUMS
        now = byte_sum(self._named_parameters()) if old else tensor_checksum(self._saved_tensors())
        if now != written:
            raise CheckpointError(f"the weights in {folder} are not those that were trained; its files were changed")

    def _open_weights(self, folder: Path) -> None:
        if has_adapters(self.model.model):
            self.model.load_adapters(folder)
        else:
            saved = VisualRetrievalModel.from_pretrained(str(folder), self.settings.for_opening())
            self.model.model.load_state_dict(saved.model.state_dict())


def _read_tensors(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:  # Any: JSON
    """The tensors of training_state.safetensors. Raises CheckpointError when they are not those that were written."""
    file = folder / TRAINING_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a whole checkpoint: {TRAINING_FILE} is missing, or no file")
    with library_errors(CheckpointError, f"{folder} is not a whole checkpoint: {TRAINING_FILE}"):
        tensors: dict[str, Tensor] = load_file(file)
    if record["format"] == _FORMAT and tensor_checksum(tensors) != record.get("tensors"):
        raise CheckpointError(f"{file} is damaged: its checksum says that it holds something else than was written")
    return tensors


def _remove_old(checkpoint: Path) -> None:
    """Delete a checkpoint over the limit; one that cannot be is the user's to delete, and ends no run."""
    try:
        remove(checkpoint)
    except OSError as error:
        _log.warning("%s is over save_total_limit and cannot be deleted: %s", checkpoint, error)


def _load_classes(classes: ClassWeights, saved: Mapping[str, Tensor]) -> None:
    """Load the class weights. Raises ConfigError when the data have other classes now."""
    before, now = (set(keys.tolist()) for keys in (saved["keys"], classes.keys))
    if before != now:
        raise ConfigError(
            f"the checkpoint was trained on {len(before)} classes; {len(before - now)} of them are gone from the"
            f" training data, and {len(now - before)} are new. Continuing would be exact no longer: give the rows the"
            " groups that they had, or start a new run from the checkpoint's weights with model_name: <checkpoint"
            " folder> and another output_dir"
        )
    classes.load_state_dict(dict(saved))


def _oldest_over_limit(run: RunFolder, step: int, limit: int) -> list[Path]:
    """The oldest checkpoints over the limit; never the one of `step`, which was just written whole."""
    others = [path for path in run.checkpoints() if checkpoint_step(path) != step]
    return others[: max(0, len(others) - (limit - 1))]
