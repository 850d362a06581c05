"""The data of a run: training sets, validation sets that choose the best weights, test sets of the report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vembed.data.dataset import VisualRetrievalDataset, load_datasets
from vembed.data.settings import DataSettings, DataSource
from vembed.data.splits.overlap import TRAIN, VALIDATION, HeldOutContents, Overlap
from vembed.data.splits.split import Split, load_split, split_validation
from vembed.data.validation import check_dataset, visit_rows
from vembed.errors import ConfigError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.network.parameters import FUSION_PREFIX, parameter_infos
from vembed.types import Example, RowNeeds

_log = logging.getLogger(__name__)

Datasets = Sequence[VisualRetrievalDataset]
_TEXT_AND_IMAGE = "m"  # in a retrieval mode such as m2i
_TOWERS: Mapping[str, tuple[str, ...]] = {"t": ("text",), "i": ("vision",), "m": ("text", "vision")}


@dataclass(frozen=True)
class RunData:
    """Data sets by role. `split` is set where validation rows were split off the training data.

    overlaps: what test and validation sets share with rows that are trained on, or that choose the checkpoint.
    """

    train: Datasets
    validation: Datasets
    test: Datasets
    split: Split | None
    overlaps: tuple[Overlap, ...] = ()

    @property
    def roles(self) -> Mapping[str, Datasets]:
        """Role -> data sets."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def rows(self) -> dict[str, dict[str, int]]:
        """Role -> data set -> rows."""
        return {role: {one.name: len(one) for one in sets} for role, sets in self.roles.items()}


def read_run_data(
    settings: DataSettings, *, seed: int, saved_split: Path | None = None, needs: RowNeeds | None = None
) -> RunData:
    """All data of a run, its rows checked. `saved_split`: the split of the run that is continued.

    needs: what the loss needs of every training row (scores, embeddings, negatives).

    Raises ConfigError without data_path, DataError for data that cannot be used.
    """
    if settings.data_path is None:
        raise ConfigError("data_path is missing: name the training data")
    everything = load_datasets(settings.data_path, settings, needs=needs)
    _check_query_images(settings, everything)
    _check_image_cache(settings, everything)
    evaluation_needs = RowNeeds(scores_say_relevance=needs is None or needs.scores_say_relevance)
    test = _load(settings.test_data_path, settings, evaluation_needs)
    validation = _load(settings.val_data_path, settings, evaluation_needs)
    held_out = HeldOutContents()
    for role, sets in (("test", test), (VALIDATION, validation), (TRAIN, everything)):
        for dataset in sets:
            visit = partial(_visit, held_out, role, dataset.name) if test or validation else None
            check_dataset(dataset, settings, visit)
    if settings.val_data_path is not None:
        return _told(RunData(everything, validation, test, None, tuple(held_out.overlaps())))
    if saved_split is not None and saved_split.exists():
        split = load_split(saved_split, everything)
    else:
        split = split_validation(everything, settings.val_fraction, seed)
    overlaps = tuple(held_out.overlaps(split.validation_rows))
    return _told(RunData(split.train, split.validation, test, split, overlaps))


def _visit(
    held_out: HeldOutContents, role: str, name: str, index: int, example: Example, file_sizes: Mapping[str, int]
) -> None:
    """Compare a row with the held-out ones read before it, and take it in if it is one."""
    if role != "test":
        held_out.look(role, name, index, example, file_sizes)
    if role != TRAIN:
        held_out.add(role, name, example, file_sizes)


def find_overlaps(
    settings: DataSettings, role: str, datasets: Datasets, *, saved_split: Path, needs: RowNeeds
) -> tuple[Overlap, ...]:
    """What data sets that a finished run is measured on share with its training and validation data.

    role: of the sets ("test", "validation"). saved_split: of the run, if it has one. Raises DataError when the training
    data has gone.
    """
    held_out = HeldOutContents()
    for dataset in datasets:
        visit_rows(dataset, partial(_visit, held_out, role, dataset.name))
    everything = _load(settings.data_path, settings, needs)
    others = ((TRAIN, everything), (VALIDATION, _load(settings.val_data_path, settings, needs)))
    for other, sets in others if role != VALIDATION else others[:1]:
        for dataset in sets:
            visit_rows(dataset, partial(held_out.look, other, dataset.name))
    moved = load_split(saved_split, everything).validation_rows if saved_split.exists() else {}
    return tuple(held_out.overlaps(moved))


def _told(data: RunData) -> RunData:
    """The data; warns of held-out rows that were trained on."""
    for overlap in data.overlaps:
        _log.log(logging.INFO if overlap.by_design else logging.WARNING, "%s", overlap)
    return data


def _check_query_images(settings: DataSettings, datasets: Datasets) -> None:
    if settings.query_image_as_negative and all(dataset.mode != "m2i" for dataset in datasets):
        modes = ", ".join(sorted({dataset.mode for dataset in datasets}))
        raise ConfigError(
            f"query_image_as_negative: has an effect only with retrieval_mode m2i (text and image ask for an image);"
            f" the training data is {modes}"
        )


def _check_image_cache(settings: DataSettings, datasets: Datasets) -> None:
    if settings.image_host_cache != "uint8" and all(dataset.mode == "t2t" for dataset in datasets):
        raise ConfigError(
            f"image_host_cache: {settings.image_host_cache} has no effect: the training data has no images"
            " (retrieval_mode t2t); take it out"
        )


def check_datasets_train(data: RunData, model: BaseEmbeddingModel) -> None:
    """Refuse a training set that would train nothing but the temperature, and a new fusion that no set would train.

    Raises ConfigError.
    """
    trainable = {
        "fusion" if info.name.startswith(FUSION_PREFIX) else info.part
        for info in parameter_infos(model)
        if info.parameter.requires_grad
    }
    if model.has_new_fusion and not any(_TEXT_AND_IMAGE in dataset.mode for dataset in data.train):
        raise ConfigError(
            f"fusion: {model.spec.fusion} would stay the sum that it starts as: no training set has rows of text and"
            " image (retrieval_mode m2i, m2t, ...); take it out, or add one"
        )
    for dataset in data.train:
        towers = {tower for letter in dataset.mode.split("2") for tower in _TOWERS[letter]}
        fusion = {"fusion"} if _TEXT_AND_IMAGE in dataset.mode else set()
        if not trainable & {*towers, *fusion, "heads"}:
            raise ConfigError(
                f"data set {dataset.name} ({dataset.mode}) teaches nothing: its {' and '.join(sorted(towers))} tower"
                f"{'s are' if len(towers) > 1 else ' is'} frozen"
            )


def _load(source: DataSource | None, settings: DataSettings, needs: RowNeeds) -> list[VisualRetrievalDataset]:
    return [] if source is None else load_datasets(source, settings, needs=needs)
