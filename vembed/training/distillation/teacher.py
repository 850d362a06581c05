"""The teacher of a distillation run: a model, embeddings that the rows bring, or random ones where steps are measured.

A teacher model embeds all training items before training (`teacher_model`), and is not run in a step.
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
from vembed.training.distillation.teacher_facts import TeacherFacts
from vembed.training.distillation.teacher_model import TeacherModel, TeacherOptions
from vembed.training.frozen_features import items_of_rows
from vembed.training.run.data import Datasets
from vembed.types import Batch, Embeddings, Item, Side, Sides
from vembed.utils.files import user_cache

_RANDOM_TOKENS = 64
_COSINE_TEMPERATURE = 0.05  # rows bring no temperature: that of models that have none of their own


class TeacherSource(Protocol):
    """Gives a teacher's embeddings of a batch."""

    def embeddings(self, batch: Batch) -> Sides:
        """Those of its queries and documents, [rows, dim] or [rows, tokens, dim] each; dim is the teacher's."""


@dataclass(frozen=True)
class RandomTeacher:
    """Random embeddings instead of a teacher's, for a run whose steps are only measured: they cost a step as much.

    They are the same in every step, so that gradients of two steps on a batch can be compared.
    """

    facts: TeacherFacts

    def embeddings(self, batch: Batch) -> Sides:
        """Random embeddings of the batch, at length 1."""
        return Sides(*(self._random(inputs.num_rows) for inputs in (batch.queries, batch.documents)))

    def _random(self, rows: int) -> Embeddings:
        tokens = (_RANDOM_TOKENS,) if self.facts.spec.scoring == "maxsim" else ()
        draw = torch.Generator().manual_seed(rows)
        vectors = torch.randn(rows, *tokens, self.facts.dim, generator=draw)
        return Embeddings(torch.nn.functional.normalize(vectors, dim=-1))


def open_teacher(loss: LossSettings, options: TeacherOptions, datasets: Datasets) -> TeacherModel | None:
    """The teacher model of the settings, None without one. Raises ConfigError for one that cannot embed the data."""
    if loss.teacher_model_name is None:
        return None
    cache = user_cache("teachers") if loss.teacher_cache_dir is None else Path(loss.teacher_cache_dir)
    teacher = TeacherModel(loss.teacher_model_name, cache, options)
    for dataset in datasets:
        teacher.check_mode(dataset.mode)
    return teacher


def teacher_items(datasets: Datasets, data: DataSettings) -> Iterator[tuple[Item, Side]]:
    """The items of the training rows that a teacher embeds, each with its side."""
    for item, side in items_of_rows(datasets):
        yield item, side
        # The loader makes the picture of such a query a document, too, which no row holds by itself.
        if data.query_image_as_negative and side == "query" and item.text is not None and item.images:
            yield replace(item, text=None), "document"


def precomputed_teacher(loss: LossSettings, datasets: Datasets) -> Teacher | None:
    """Scorer, temperature and dim of the embeddings that rows bring; None where the settings do not use them."""
    if not loss.teacher_embeddings:
        return None
    temperature = _COSINE_TEMPERATURE if loss.teacher_similarity == "cosine" else 1.0
    return Teacher(get_scorer(loss.teacher_similarity), temperature, _embedding_dim(datasets))


def _embedding_dim(datasets: Datasets) -> int | None:
    """The dim of the embeddings in the first usable row, which reading has checked all others for; None without one."""
    for dataset in datasets:
        for row in range(len(dataset)):
            try:
                embeddings = dataset[row].embeddings
            except DataError:
                continue
            return None if embeddings is None else len(embeddings.query)
    return None
