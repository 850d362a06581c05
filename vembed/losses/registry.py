"""The losses by name. Reading a loss's settings imports no torch; its function is imported when it is built."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vembed.errors import ConfigError
from vembed.losses.settings import (
    ArcFaceSettings,
    ClassSettings,
    ColBERTSettings,
    ContrastiveSettings,
    CoSENTSettings,
    HardNegativeSettings,
    InfoNCESettings,
    MarginMSESettings,
    PreferenceSettings,
    ProxyAnchorSettings,
    SigmoidSettings,
    SupConSettings,
    TripletSettings,
)
from vembed.registry import Registry
from vembed.types import RowNeeds
from vembed.utils.settings import Section

if TYPE_CHECKING:
    from torch import Tensor

    from vembed.losses.lacks import Lack
    from vembed.types import Targets


def _default_needs(_settings: Section) -> RowNeeds:
    return RowNeeds(scores="unread")


def _no_keys(_settings: Section) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Loss:
    """A loss: the section with its options, and its function or where that is ("package.module:function").

    The function returns a scalar. One that reads scores takes (ScoreView, Targets, the section); one that reads
    embeddings takes (queries, documents, Targets, the section), both sides as Embeddings; if it `learns_classes`, then
    (queries, documents, Targets, ClassCentres, the section), which is a ClassSettings. The section comes by its name,
    `settings`.

    scorers: the names of those that it has a meaning for (none: all). needs: the section -> what rows must have.
    unscaled: it reads scores without temperature. learns_bias: the model gets a bias that is added to scores, if it has
    none. matryoshka: applies at several widths, as with use_mrl. reads_reference: compares with the model as it was
    before training. distillation: learns from a teacher, as with use_distillation. reads_teacher: the section -> the
    keys set in it for which the loss itself goes by a teacher's embeddings. lacks: the function ("package.module:name")
    that tells from (Targets, the section) what keeps a batch from teaching anything; "" where nothing does.
    """

    settings: type[Section]
    function: "str | Callable[..., Tensor]"
    scorers: tuple[str, ...] = ()
    needs: Callable[[Any], RowNeeds] = _default_needs  # Any: each loss has a section of its own
    unscaled: bool = False
    learns_bias: bool = False
    matryoshka: bool = False
    reads_reference: bool = False
    reads: Literal["scores", "embeddings"] = "scores"
    learns_classes: bool = False
    distillation: bool = False
    reads_teacher: Callable[[Any], tuple[str, ...]] = _no_keys  # Any: as above
    lacks: str = ""

    @property
    def has_temperature(self) -> bool:
        """True if the temperature has an effect."""
        return self.reads == "scores" and not self.unscaled

    def __post_init__(self) -> None:
        if self.learns_classes and not (self.reads == "embeddings" and issubclass(self.settings, ClassSettings)):
            name = self.settings.__name__
            raise ConfigError(
                f"{name}: a loss that learns classes reads embeddings, and its section is a ClassSettings"
            )

    def load(self) -> "Callable[..., Tensor]":
        """The function, imported if need be."""
        if not isinstance(self.function, str):
            return self.function
        function: Callable[..., Tensor] = _imported(self.function)
        return function

    def lack(self) -> "Callable[[Targets, Any], Lack | None] | None":
        """The function `lacks`, imported; None where nothing keeps a batch from teaching."""
        function: Callable[[Targets, Any], Lack | None] | None = _imported(self.lacks) if self.lacks else None
        return function


def _imported(place: str) -> Any:  # Any: whatever has that name there
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _triplet_needs(settings: TripletSettings) -> RowNeeds:
    return RowNeeds(negatives=settings.triplet_mining == "explicit", scores="unread")


def _cosent_needs(settings: CoSENTSettings) -> RowNeeds:
    return RowNeeds(scores="any" if settings.cosent_pairs == "graded" else "unread")


def _contrastive_needs(_settings: ContrastiveSettings) -> RowNeeds:
    return RowNeeds(scores="binary")


def _teacher_margins(settings: InfoNCESettings) -> tuple[str, ...]:
    keys = ("false_negative_teacher_margin", "false_negative_teacher_relative_margin")
    return tuple(key for key in keys if getattr(settings, key) is not None)


def _margin_mse_needs(_settings: MarginMSESettings) -> RowNeeds:
    return RowNeeds(negatives=True, scores="any", scores_say_relevance=False)


def _preference_needs(_settings: PreferenceSettings) -> RowNeeds:
    return RowNeeds(negatives=True, scores="unread")


def _class_needs(_settings: ClassSettings) -> RowNeeds:
    return RowNeeds(groups=True, scores="unread")


def _class_loss(settings: type[ClassSettings], function: str) -> Loss:
    """A loss over one vector per row and the weights of classes."""
    return Loss(
        settings,
        function,
        scorers=("cosine", "dot"),
        needs=_class_needs,
        reads="embeddings",
        learns_classes=True,
    )


_FUNCTIONS = "vembed.losses.functions"
_LACKS = "vembed.losses.lacks"
_HARD_NEGATIVE = Loss(
    HardNegativeSettings, f"{_FUNCTIONS}.hard_negative:hard_negative", lacks=f"{_LACKS}:of_hard_negative"
)
_INFONCE = Loss(
    InfoNCESettings, f"{_FUNCTIONS}.infonce:infonce", reads_teacher=_teacher_margins, lacks=f"{_LACKS}:of_infonce"
)
_LOSSES = {
    "infonce": _INFONCE,
    "mrl": replace(_INFONCE, matryoshka=True),
    "distillation": replace(_INFONCE, distillation=True),
    "colbert": Loss(
        ColBERTSettings,
        f"{_FUNCTIONS}.colbert:colbert",
        scorers=("maxsim",),
        reads_teacher=_teacher_margins,
        lacks=f"{_LACKS}:of_infonce",
    ),
    "supcon": Loss(SupConSettings, f"{_FUNCTIONS}.supcon:supcon", lacks=f"{_LACKS}:of_supcon"),
    "sigmoid": Loss(SigmoidSettings, f"{_FUNCTIONS}.sigmoid:sigmoid", learns_bias=True, lacks=f"{_LACKS}:of_sigmoid"),
    "hard_negative": _HARD_NEGATIVE,
    "in_batch_hard": _HARD_NEGATIVE,
    "triplet": Loss(
        TripletSettings,
        f"{_FUNCTIONS}.triplet:triplet",
        needs=_triplet_needs,
        unscaled=True,
        lacks=f"{_LACKS}:of_triplet",
    ),
    "cosent": Loss(CoSENTSettings, f"{_FUNCTIONS}.cosent:cosent", needs=_cosent_needs, lacks=f"{_LACKS}:of_cosent"),
    "contrastive": Loss(
        ContrastiveSettings,
        f"{_FUNCTIONS}.contrastive:contrastive",
        scorers=("cosine",),
        needs=_contrastive_needs,
        unscaled=True,
        lacks=f"{_LACKS}:of_contrastive",
    ),
    "arcface": _class_loss(ArcFaceSettings, f"{_FUNCTIONS}.arcface:arcface"),
    "proxy_anchor": _class_loss(ProxyAnchorSettings, f"{_FUNCTIONS}.proxy_anchor:proxy_anchor"),
    "margin_mse": Loss(
        MarginMSESettings,
        f"{_FUNCTIONS}.margin_mse:margin_mse",
        needs=_margin_mse_needs,
        lacks=f"{_LACKS}:of_margin_mse",
    ),
    "preference": Loss(
        PreferenceSettings,
        f"{_FUNCTIONS}.preference:preference",
        needs=_preference_needs,
        reads_reference=True,
        lacks=f"{_LACKS}:of_preference",
    ),
}
LossRegistry: Registry[Loss] = Registry("loss_type")
for _name, _loss in _LOSSES.items():
    LossRegistry.register(_name, _loss)
