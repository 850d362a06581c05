"""The feature cache of a run: each frozen tower encodes an item once, for training, validation and the report."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import get_args

from vembed.data.dataset import VisualRetrievalDataset
from vembed.data.settings import DataSettings
from vembed.errors import ConfigError, DataError, ModelError
from vembed.evaluation.relevance import RetrievalSet
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings, Tower
from vembed.retrieval.feature_cache import FeatureCache, check_family
from vembed.training.settings import OptimizerSettings, TrainingSettings
from vembed.types import Item, Side
from vembed.utils.files import user_cache

ItemSides = Iterable[tuple[Item, Side]]


@dataclass(frozen=True)
class FrozenFeatures:
    """The folder in which a run caches the features of its frozen towers, and the towers."""

    folder: Path
    towers: tuple[Tower, ...]

    def check(self, model: VisualRetrievalModel) -> None:
        """Raise ConfigError for a model of a family whose features cannot be cached."""
        try:
            check_family(model)
        except ModelError as error:
            raise ConfigError(f"cache_frozen_features: {error}") from error

    def attach(self, model: VisualRetrievalModel, items: ItemSides) -> VisualRetrievalModel:
        """The model with a processor that reads cached features in place of texts and pictures; fills the cache first.

        Raises ConfigError for a model of a family whose features cannot be cached.
        """
        # A model that was opened for the report has no tower frozen yet.
        model.model.freeze([tower for tower in self.towers if tower not in model.model.freezing.towers])
        try:
            cache = FeatureCache(model, self.folder)
        except ModelError as error:
            raise ConfigError(f"cache_frozen_features: {error}") from error
        cache.fill(items)
        return model.with_processor(cache.processor)


def frozen_features(
    training: TrainingSettings, model: ModelSettings, optimizer: OptimizerSettings, data: DataSettings
) -> FrozenFeatures | None:
    """The feature cache that the settings ask for; None without cache_frozen_features.

    Raises ConfigError when no tower is frozen as a whole, or when augmentation changes its pictures in every epoch.
    """
    if not training.cache_frozen_features:
        return None
    rates = optimizer.learning_rates
    towers = [tower for tower in get_args(Tower) if tower in model.freeze or rates.get(tower) == 0]
    if not towers:
        found = "freeze_layers freezes first layers alone" if model.freeze_layers else "no tower is frozen"
        raise ConfigError(
            f"cache_frozen_features: {found}, and it keeps what whole frozen towers give; set freeze: [vision] or"
            " [text], or take it out"
        )
    if "vision" in towers and data.augment != "none":
        raise ConfigError(
            f"cache_frozen_features: augment: {data.augment} changes pictures anew in every epoch, so that a frozen"
            " vision tower has no features to keep; set augment: none, or take it out"
        )
    folder = training.feature_cache_dir
    return FrozenFeatures(user_cache("features") if folder is None else Path(folder), tuple(towers))


def items_of_rows(datasets: Sequence[VisualRetrievalDataset]) -> Iterator[tuple[Item, Side]]:
    """The items of all rows, each with its side. Unusable rows are left out, for those who read them to refuse."""
    for dataset in datasets:
        for row in range(len(dataset)):
            try:
                example = dataset[row]
            except DataError:
                continue
            yield example.query, "query"
            yield from _documents(chain(example.positives, example.negatives))


def items_of_sets(sets: Sequence[RetrievalSet]) -> Iterator[tuple[Item, Side]]:
    """Queries and gallery of evaluated sets, each with its side."""
    for one in sets:
        for query in one.queries:
            yield query, "query"
        yield from _documents(one.documents)


def _documents(items: Iterable[Item]) -> Iterator[tuple[Item, Side]]:
    for item in items:
        yield item, "document"
