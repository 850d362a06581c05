"""The losses by name. Reading a loss's settings imports no torch; its function is imported when it is built."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vembed.losses.settings import (
    ColBERTSettings,
    ContrastiveSettings,
    CoSENTSettings,
    HardNegativeSettings,
    InfoNCESettings,
    MarginMSESettings,
    PreferenceSettings,
    SigmoidSettings,
    SupConSettings,
    TripletSettings,
)
from vembed.registry import Registry
from vembed.types import RowNeeds
from vembed.utils.settings import Section

if TYPE_CHECKING:
    from torch import Tensor


def _nothing(_settings: Section) -> RowNeeds:
    return RowNeeds(scores="unread")


@dataclass(frozen=True)
class Loss:
    """A loss: the section with its options, and its function or where that is ("package.module:function").

    The function takes (ScoreView, Targets, the section) and returns a scalar. scorers: the names of those that it has
    a meaning for (none: all). needs: the section -> what rows must have. learns_bias: the model gets a bias that is
    added to scores, if it has none. matryoshka: applies at several widths, as with use_mrl. reads_reference: compares
    with the model as it was before training.
    """

    settings: type[Section]
    function: "str | Callable[..., Tensor]"
    scorers: tuple[str, ...] = ()
    needs: Callable[[Any], RowNeeds] = _nothing  # Any: each loss has a section of its own
    learns_bias: bool = False
    matryoshka: bool = False
    reads_reference: bool = False

    def load(self) -> "Callable[..., Tensor]":
        """The function, imported if need be."""
        if not isinstance(self.function, str):
            return self.function
        module, name = self.function.split(":")
        function: Callable[..., Tensor] = getattr(importlib.import_module(module), name)
        return function


def _triplet_needs(settings: TripletSettings) -> RowNeeds:
    return RowNeeds(negatives=settings.triplet_mining == "explicit", scores="unread")


def _cosent_needs(settings: CoSENTSettings) -> RowNeeds:
    return RowNeeds(scores="any" if settings.cosent_pairs == "graded" else "unread")


def _contrastive_needs(_settings: ContrastiveSettings) -> RowNeeds:
    return RowNeeds(scores="binary")


def _margin_mse_needs(_settings: MarginMSESettings) -> RowNeeds:
    return RowNeeds(negatives=True, scores="any")


def _preference_needs(_settings: PreferenceSettings) -> RowNeeds:
    return RowNeeds(negatives=True, scores="unread")


_FUNCTIONS = "vembed.losses.functions"
_HARD_NEGATIVE = Loss(HardNegativeSettings, f"{_FUNCTIONS}.hard_negative:hard_negative")
_LOSSES = {
    "infonce": Loss(InfoNCESettings, f"{_FUNCTIONS}.infonce:infonce"),
    "mrl": Loss(InfoNCESettings, f"{_FUNCTIONS}.infonce:infonce", matryoshka=True),
    "colbert": Loss(ColBERTSettings, f"{_FUNCTIONS}.colbert:colbert", scorers=("maxsim",)),
    "supcon": Loss(SupConSettings, f"{_FUNCTIONS}.supcon:supcon"),
    "sigmoid": Loss(SigmoidSettings, f"{_FUNCTIONS}.sigmoid:sigmoid", learns_bias=True),
    "hard_negative": _HARD_NEGATIVE,
    "in_batch_hard": _HARD_NEGATIVE,
    "triplet": Loss(TripletSettings, f"{_FUNCTIONS}.triplet:triplet", needs=_triplet_needs),
    "cosent": Loss(CoSENTSettings, f"{_FUNCTIONS}.cosent:cosent", needs=_cosent_needs),
    "contrastive": Loss(
        ContrastiveSettings, f"{_FUNCTIONS}.contrastive:contrastive", scorers=("cosine",), needs=_contrastive_needs
    ),
    "margin_mse": Loss(MarginMSESettings, f"{_FUNCTIONS}.margin_mse:margin_mse", needs=_margin_mse_needs),
    "preference": Loss(
        PreferenceSettings, f"{_FUNCTIONS}.preference:preference", needs=_preference_needs, reads_reference=True
    ),
}
LossRegistry: Registry[Loss] = Registry("loss_type")
for _name, _loss in _LOSSES.items():
    LossRegistry.register(_name, _loss)
