"""The teacher of a run: which it is, what it embeds of the rows, and what stands in for it where steps are measured.

Either a model (vembed.training.teacher_model), or none at all, where the rows bring embeddings of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from vembed.data.settings import DataSettings
from vembed.errors import DataError
from vembed.losses.objective import Teacher
from vembed.losses.settings import LossSettings
from vembed.scoring import get_scorer
from vembed.training.frozen_features import items_of_rows
from vembed.training.run.data import Datasets
from vembed.training.teacher_model import TeacherFacts, TeacherModel, TeacherOptions
from vembed.types import Batch, Embeddings, Item, Side, Sides
from vembed.utils.files import user_cache

_STAND_IN_TOKENS = 64
_COSINE_TEMPERATURE = 0.05  # as of a model without one of its own


class TeacherSource(Protocol):
    """Gives a teacher's embeddings of a batch."""

    def sides(self, batch: Batch) -> Sides: ...


@dataclass(frozen=True)
class StandIn:
    """Random vectors in the place of a teacher's, the same at every step: they cost it what the teacher's own would."""

    facts: TeacherFacts

    def sides(self, batch: Batch) -> Sides:
        """Random embeddings of the batch."""
        return Sides(*(self._random(inputs.num_rows) for inputs in (batch.queries, batch.documents)))

    def _random(self, rows: int) -> Embeddings:
        tokens = (_STAND_IN_TOKENS,) if self.facts.spec.scoring == "maxsim" else ()
        draw = torch.Generator().manual_seed(rows)
        vectors = torch.randn(rows, *tokens, self.facts.dim, generator=draw)
        return Embeddings(torch.nn.functional.normalize(vectors, dim=-1))


def open_teacher(loss: LossSettings, options: TeacherOptions, datasets: Datasets) -> TeacherModel | None:
    """The model that the settings name, None where they name none. Raises ConfigError for one that cannot teach."""
    if loss.teacher_model_name is None:
        return None
    cache = user_cache("teachers") if loss.teacher_cache_dir is None else Path(loss.teacher_cache_dir)
    teacher = TeacherModel(loss.teacher_model_name, cache, options)
    for dataset in datasets:
        teacher.check_mode(dataset.mode)
    return teacher


def teacher_items(datasets: Datasets, data: DataSettings) -> Iterator[tuple[Item, Side]]:
    """What a teacher embeds of the rows that are trained on."""
    for item, side in items_of_rows(datasets):
        yield item, side
        if data.query_image_as_negative and side == "query" and item.text is not None and item.images:
            yield replace(item, text=None), "document"


def teacher_in_data(loss: LossSettings, datasets: Datasets) -> Teacher | None:
    """How the embeddings that rows bring make scores; None where they are not asked for."""
    if not loss.teacher_embeddings:
        return None
    temperature = _COSINE_TEMPERATURE if loss.teacher_similarity == "cosine" else 1.0
    return Teacher(get_scorer(loss.teacher_similarity), temperature, _width(datasets))


def _width(datasets: Datasets) -> int | None:
    """Of the embeddings of the first row that can be used; all others have the same."""
    for dataset in datasets:
        for row in range(len(dataset)):
            try:
                embeddings = dataset[row].embeddings
            except DataError:
                continue
            return None if embeddings is None else len(embeddings.query)
    return None
