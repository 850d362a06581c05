"""A run's teacher, seen from its settings: whether there is one, what reads it, and what rows must bring for it."""

from collections.abc import Iterator
from dataclasses import replace

from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.types import RowNeeds
from vembed.utils.settings import Section


def distills(settings: LossSettings) -> bool:
    """True if distillation is a part of the loss."""
    return settings.use_distillation or LossRegistry.get(settings.loss_type).distillation


def compares_scores(settings: LossSettings) -> bool:
    """True if distillation compares scores, over a temperature."""
    return distills(settings) and settings.distillation_type != "cosine"


def has_teacher(settings: LossSettings) -> bool:
    """True if there are embeddings to learn from: of another model, or in the data."""
    return settings.teacher_model_name is not None or settings.teacher_embeddings


def row_needs(settings: LossSettings, options: Section) -> RowNeeds:
    """The columns that the loss with its options and distillation need of every row."""
    needs = LossRegistry.get(settings.loss_type).needs(options)
    if settings.teacher_embeddings:
        return replace(needs, embeddings=True)
    if not distills(settings) or has_teacher(settings):
        return needs
    unread = needs.scores in ("none", "unread")
    return replace(
        needs,
        scores="any" if unread else needs.scores,
        scores_say_relevance=needs.scores_say_relevance and not unread,
        negatives=needs.negatives or settings.distillation_type == "margin_mse",
        num_documents=2 if settings.distillation_type == "kl" else needs.num_documents,
    )


def evaluation_needs(settings: LossSettings, options: Section) -> RowNeeds:
    """The needs of rows that a model is measured on: none, but whether their scores say relevance."""
    return RowNeeds(scores_say_relevance=row_needs(settings, options).scores_say_relevance)


def teacher_problems(settings: LossSettings, options: Section, *, with_teacher: bool) -> Iterator[tuple[str, str]]:
    """Keys that have no effect or lack a teacher, and what is wrong with each. with_teacher: it has embeddings."""
    readers = LossRegistry.get(settings.loss_type).reads_teacher(options)
    if with_teacher and not distills(settings) and not readers:
        key = "teacher_embeddings" if settings.teacher_embeddings else "teacher_model_name"
        yield (
            key,
            "nothing would be learned from the teacher; set use_distillation: true (or, for a loss that has it,"
            f" false_negative_teacher_margin), or take {key} out",
        )
    for key in () if with_teacher else readers:
        yield key, "goes by a teacher's embeddings; set teacher_model_name, or teacher_embeddings: true"
    if distills(settings) and settings.distillation_type == "cosine" and not with_teacher:
        yield (
            "distillation_type",
            "cosine compares with a teacher's embeddings, not with scores in the data; set teacher_model_name, or"
            " teacher_embeddings: true",
        )
    if settings.teacher_temperature is not None and not compares_scores(settings):
        yield "teacher_temperature", "has an effect only where a distillation_type other than cosine compares scores"
