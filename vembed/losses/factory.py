"""LossFactory: from settings to the objective of a run."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from vembed.errors import ConfigError
from vembed.losses.class_weights import ClassWeights
from vembed.losses.functions.distillation import distilled
from vembed.losses.functions.mrl import MatryoshkaLevel, matryoshka
from vembed.losses.objective import LossFunction, Objective, ScoreView, Teacher
from vembed.losses.registry import Loss, LossRegistry
from vembed.losses.settings import ClassSettings, LossSettings
from vembed.losses.teacher_needs import compares_scores, distills, has_teacher, teacher_problems
from vembed.scoring import Scorer, ScorerRegistry, cosine, maxsim
from vembed.types import Targets
from vembed.utils.settings import Section

_log = logging.getLogger(__name__)
_MIN_WIDTH = 32


class LossFactory:
    """Builds objectives."""

    @staticmethod
    def create(
        settings: LossSettings,
        options: Section | None = None,
        *,
        scorer: Scorer = cosine,
        dim: int | None = None,
        normalize: bool = True,
        classes: Sequence[int] = (),
        seed: int = 0,
        teacher: Teacher | None = None,
    ) -> Objective:
        """The objective for `settings.loss_type`, with that loss's own `options` (None: its defaults).

        scorer, dim, normalize: of the model; its similarity, its width, and whether its vectors are of length 1 (so
        that they are again where Matryoshka cuts them). classes: the groups of the training rows, for a loss that
        learns a weight for each; `seed` draws those. teacher: of the embeddings that batches bring. Raises ConfigError
        for an unknown loss, naming the nearest, for options of another loss, and for what the model or the teacher
        cannot do.

        >>> LossFactory.create(LossSettings(loss_type="infonse"))
        Traceback (most recent call last):
        vembed.errors.ConfigError: unknown loss_type 'infonse'; did you mean 'infonce'? Known: ...
        """
        loss = LossRegistry.get(settings.loss_type)
        chosen = loss.settings() if options is None else options
        if not isinstance(chosen, loss.settings):
            right, wrong = loss.settings.__name__, type(chosen).__name__
            raise ConfigError(f"loss_type {settings.loss_type!r} takes {right} as its options, not {wrong}")
        if loss.scorers and scorer not in [ScorerRegistry.get(name) for name in loss.scorers]:
            raise ConfigError(_unsupported_scorer(settings.loss_type, loss.scorers))
        function = _loss_function(loss, chosen)
        weights = _class_weights(settings.loss_type, chosen, dim, classes, seed) if loss.learns_classes else None
        teacher = _checked_teacher(settings, chosen, teacher, scorer, dim)
        if compares_scores(settings):
            function = partial(distilled, loss=function, settings=settings)
        widths: tuple[int, ...] = ()
        if settings.use_mrl or loss.matryoshka:
            levels = choose_levels(settings, dim, late_interaction=scorer is maxsim)
            widths = tuple(level.width for level in levels if level.width is not None)
            function = partial(matryoshka, loss=function, levels=levels, normalize=normalize)
        if distills(settings) and not compares_scores(settings):
            function = partial(distilled, loss=function, settings=settings)
        return Objective(function, scorer, widths, weights, teacher)


def _loss_function(loss: Loss, options: Section) -> LossFunction:
    """The loss as a function of scores and targets."""
    function = partial(loss.load(), settings=options)
    if loss.reads == "scores":
        return function

    def of_embeddings(view: ScoreView, targets: Targets) -> Tensor:
        sides = (view.queries, view.documents, targets)
        return function(*sides, view.centres) if loss.learns_classes else function(*sides)

    return of_embeddings


def _class_weights(
    loss_type: str, options: Section, dim: int | None, classes: Sequence[int], seed: int
) -> ClassWeights:
    """New weights of these classes. Raises ConfigError without at least two, or a width."""
    assert isinstance(options, ClassSettings)
    if dim is None:
        raise ConfigError(f"loss_type {loss_type} learns a vector for each class; name the model's width (dim)")
    if len(set(classes)) < 2:
        raise ConfigError(
            f"loss_type {loss_type} tells classes apart and needs at least 2, but the training rows hold"
            f" {len(set(classes))}; `group` (or `class`) names a row's class"
        )
    return ClassWeights(
        classes, dim, per_class=options.centres_per_class, learning_rate=options.class_learning_rate, seed=seed
    )


def _checked_teacher(
    settings: LossSettings, options: Section, teacher: Teacher | None, scorer: Scorer, dim: int | None
) -> Teacher | None:
    """The teacher at the temperature that is set. Raises ConfigError for one that cannot be learned from."""
    problems = [f"{key}: {text}" for key, text in teacher_problems(settings, options, with_teacher=teacher is not None)]
    if problems:
        raise ConfigError("\n".join(problems))
    if teacher is None and has_teacher(settings):
        raise ConfigError(
            "teacher_model_name, teacher_embeddings: give LossFactory.create the teacher that they ask for"
        )
    if teacher is None:
        return None
    if distills(settings) and not compares_scores(settings):
        if maxsim in (scorer, teacher.scorer):
            whose = "the teacher" if teacher.scorer is maxsim else "the model"
            raise ConfigError(
                f"distillation_type: cosine compares one vector per row with another, and {whose} has one per token;"
                " kl, mse and margin_mse compare scores and take any pair"
            )
        if teacher.dim is not None and dim is not None and teacher.dim != dim:
            raise ConfigError(
                f"distillation_type: cosine needs embeddings of one width: the teacher's have {teacher.dim} numbers,"
                f" the model's {dim}; kl, mse and margin_mse compare scores and take any pair"
            )
    if settings.teacher_temperature is None:
        return teacher
    return replace(teacher, temperature=settings.teacher_temperature)


def choose_levels(settings: LossSettings, dim: int | None, *, late_interaction: bool) -> tuple[MatryoshkaLevel, ...]:
    """The levels at which Matryoshka applies the loss. Raises ConfigError for those that a model of width `dim` lacks.

    >>> [level.width for level in choose_levels(LossSettings(use_mrl=True), 100, late_interaction=False)]
    [100, 50]
    """
    widths = settings.mrl_dims or _halved_widths(dim)
    weights = settings.mrl_weights or (1.0,) * len(widths)
    if len(weights) != len(widths):
        raise ConfigError(f"mrl_weights: {len(weights)} weights for {len(widths)} widths {list(widths)}; one each")
    if len(set(widths)) != len(widths):
        raise ConfigError(f"mrl_dims: {list(widths)} names a width twice")
    if dim is not None and max(widths) > dim:
        raise ConfigError(f"mrl_dims: {max(widths)} is wider than the model's embeddings ({dim})")
    if dim is not None and dim not in widths:
        _log.warning(
            "mrl_dims: %s leaves out the model's full width %d, which embeddings have unless they are cut; add it",
            list(widths), dim,
        )  # fmt: skip
    if settings.mrl_tokens and not late_interaction:
        raise ConfigError("mrl_tokens: the model gives one vector per row, not one per token; take it out")
    return (
        *(MatryoshkaLevel(width=width, weight=weight) for width, weight in zip(widths, weights, strict=True)),
        *(MatryoshkaLevel(tokens=tokens) for tokens in settings.mrl_tokens),
    )


def _halved_widths(dim: int | None) -> tuple[int, ...]:
    """The width and its halves down to 32."""
    if dim is None:
        raise ConfigError("mrl_dims: name the widths; that of the model is not known here")
    widths = [dim]
    while widths[-1] % 2 == 0 and widths[-1] // 2 >= _MIN_WIDTH:
        widths.append(widths[-1] // 2)
    return tuple(widths)


def _unsupported_scorer(loss_type: str, scorers: tuple[str, ...]) -> str:
    reasons: dict[tuple[str, ...], str] = {
        ("maxsim",): "is late interaction and needs one vector per token; choose infonce for single vectors",
        ("cosine", "dot"): "compares one vector per row with one per class, which late interaction does not have",
        ("cosine",): "is defined on cosine distance, which neither inner products nor late interaction have",
    }
    reason = reasons.get(scorers, f"reads scores of {' or '.join(scorers)} only")
    return f"loss_type {loss_type} {reason}"
