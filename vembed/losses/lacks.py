"""What keeps a batch from teaching anything under a loss, told from its targets alone, before anything is embedded.

| loss | teaches nothing where |
|---|---|
| `infonce`, `mrl`, `colbert`, `hard_negative`, `triplet`, `cosent` (in_batch) | no query has a negative |
| `supcon` | the same; with several positives each it makes them all alike |
| `sigmoid` | the same: it answers yes to everything, and makes everything alike |
| `cosent` (graded) | all scores are equal |
| `contrastive` | all labels are 1, and it makes everything alike; all are 0, and it only pushes apart |
| `triplet` (explicit), `margin_mse`, `preference` | no row names both a positive and a negative |
| `arcface`, `proxy_anchor` | never: items are compared with the weights of all classes |
| `margin_mse` | the scores of each row are equal: they make its documents alike |
| distillation | its scores or a teacher's embeddings of documents are equal; `kl` lacks a second document of a query, |
| | `margin_mse` a negative; and the loss beside it has nothing either |

Masks are read in strips until something to compare is found, which of an ordinary batch the first few rows hold.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vembed.losses.explicit_triplets import explicit_triplets
from vembed.losses.graded_pairs import graded_pairs
from vembed.losses.masks import document_mask_strips, mask_strips, query_mask_strips
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import (
    CoSENTSettings,
    InfoNCESettings,
    LossSettings,
    PreferenceSettings,
    SigmoidSettings,
    SupConSettings,
    TripletSettings,
)
from vembed.losses.teacher_needs import distills, has_teacher
from vembed.types import Targets
from vembed.utils.ragged import row_numbers
from vembed.utils.settings import Section

_STRIPS = (8, 256)  # rows of the first strip, and of those after it


@dataclass(frozen=True)
class Lack:
    """What a batch lacks and what would help, in words. moves: it has a gradient all the same, but a senseless one."""

    reason: str
    advice: str
    moves: bool = False


BatchCheck = Callable[[Targets], Lack | None]
_NO_NEGATIVE = Lack(
    "no query has a negative among the documents of its batch",
    "batches need rows of several groups, with queries and documents of their own (a larger batch_size brings more"
    " together), or rows need `negatives`",
)
_NO_TRIPLET = Lack("no row has a negative of its own beside a positive", "give rows `negatives`")

_EQUAL_SCORES = Lack(
    "each row gives all of its documents one score, so that they are only pulled to the same score",
    "give a positive and a negative scores that differ, as a teacher scores them",
    moves=True,
)
_EQUAL_EMBEDDINGS = Lack(
    "the teacher has one embedding for all documents, which tells none of them apart",
    "give each document the teacher's embedding of itself",
    moves=True,
)
_NO_TWO_DOCUMENTS = Lack("no query has two documents whose scores could be compared", _NO_NEGATIVE.advice)


def batch_check(settings: LossSettings, options: Section) -> BatchCheck:
    """The function that tells what a batch lacks under these settings; None where it can teach something."""
    own = LossRegistry.get(settings.loss_type).lack()

    def check(targets: Targets) -> Lack | None:
        lack = None if own is None else own(targets, options)
        if not distills(settings):
            return lack
        term = _lack_of_distillation(targets, settings)
        if settings.distillation_alpha == 1:
            return term
        return term if term is not None and term.moves else lack if term is not None else None

    return check


def of_infonce(targets: Targets, settings: InfoNCESettings) -> Lack | None:
    """InfoNCE, with its options, and late interaction."""
    private = settings.private_negatives
    if settings.query_to_query and any(bool(m.negative.any()) for m in query_mask_strips(targets, _STRIPS[1])):
        return None
    if settings.document_to_document and _has_compared_document(targets):
        return None
    return _lack_of_direction(targets, settings.loss_direction, private=private)


def of_hard_negative(targets: Targets, _settings: Section) -> Lack | None:
    """The hardest negatives."""
    return _without_negatives(targets)


def of_supcon(targets: Targets, settings: SupConSettings) -> Lack | None:
    """Several positives of an anchor stand in each other's denominators, which evens them out."""
    lack = _lack_of_direction(targets, settings.loss_direction)
    if lack is None:
        return None
    by_document = torch.zeros_like(targets.document_hashes)
    by_query = 0
    for masks in mask_strips(targets, _STRIPS[1]):
        by_document += masks.positive.sum(dim=0)
        by_query = max(by_query, int(masks.positive.sum(dim=1).max()))
    sides = {"query_to_document": by_query, "document_to_query": int(by_document.max())}
    return replace(lack, moves=sides.get(settings.loss_direction, max(sides.values())) > 1)


def of_sigmoid(targets: Targets, settings: SigmoidSettings) -> Lack | None:
    """Answers that are all yes."""
    lack = _without_negatives(targets, private=settings.private_negatives)
    return None if lack is None else replace(lack, moves=True)


def of_triplet(targets: Targets, settings: TripletSettings) -> Lack | None:
    """Triplets of the batch, or of its rows."""
    return of_rows(targets, settings) if settings.triplet_mining == "explicit" else _without_negatives(targets)


def of_cosent(targets: Targets, settings: CoSENTSettings) -> Lack | None:
    """Positive against negative pairs, or different scores."""
    if settings.cosent_pairs == "in_batch":
        return _without_negatives(targets)
    if targets.scores is None or len(torch.unique(targets.scores.values)) != 1:
        return None  # without any, the loss itself says so
    return Lack(
        f"all scores are equal ({targets.scores.values[0].item():g}), so that none should be above another",
        "give pairs scores that differ, or set cosent_pairs: in_batch",
    )


def of_contrastive(targets: Targets, _settings: Section) -> Lack | None:
    """Labels of both kinds."""
    labels = torch.unique(Tensor() if targets.scores is None else targets.scores.values)
    if len(labels) != 1:
        return None
    nothing = "nothing is pushed apart" if labels.item() else "nothing is pulled together"
    return Lack(f"all labels are {labels.item():g}: {nothing}", "give pairs of both labels, 1 and 0", moves=True)


def of_preference(targets: Targets, settings: PreferenceSettings) -> Lack | None:
    """Preferences that rows spell out, and the InfoNCE term."""
    lack = of_rows(targets, settings)
    return None if settings.preference_infonce_weight and _without_negatives(targets) is None else lack


def of_margin_mse(targets: Targets, _settings: Section | None = None) -> Lack | None:
    """A scored positive and a scored negative of one row."""
    if targets.scored is None or not len(targets.scored.values):
        return None  # which the loss itself says
    pairs = graded_pairs(targets, "margin_mse")
    leads = torch.isin(pairs.queries[pairs.is_negative], pairs.queries[~pairs.is_negative])
    if not bool(leads.any()):
        return _NO_TRIPLET
    return _EQUAL_SCORES if _scores_are_equal(targets) else None


def of_rows(targets: Targets, _settings: Section) -> Lack | None:
    """A positive and a negative that one row names."""
    return None if len(explicit_triplets(targets).queries) else _NO_TRIPLET


def _lack_of_distillation(targets: Targets, settings: LossSettings) -> Lack | None:
    if has_teacher(settings):
        return _lack_of_teacher(targets, settings)
    if settings.distillation_type == "margin_mse":
        return of_margin_mse(targets)
    several = targets.scored is None or bool((targets.scored.counts > 1).any())
    if not several:
        return _NO_TWO_DOCUMENTS if settings.distillation_type == "kl" else None
    return _EQUAL_SCORES if _scores_are_equal(targets) else None


def _lack_of_teacher(targets: Targets, settings: LossSettings) -> Lack | None:
    if settings.distillation_type == "margin_mse" and (lack := _without_negatives(targets)) is not None:
        return lack
    if settings.distillation_type == "kl" and not any(
        bool((masks.valid.sum(dim=1) > 1).any()) for masks in mask_strips(targets, _STRIPS[1])
    ):
        return _NO_TWO_DOCUMENTS
    return _EQUAL_EMBEDDINGS if _embeddings_are_equal(targets) else None


def _scores_are_equal(targets: Targets) -> bool:
    """True if no row gives two of its documents different scores, and some row gives several documents one."""
    if targets.scores is None or not bool((targets.scores.counts > 1).any()):
        return False
    values, rows = targets.scores.values, row_numbers(targets.scores)
    highest = values.new_zeros(len(targets.scores.counts)).scatter_reduce(0, rows, values, "amax", include_self=False)
    return bool((values == highest[rows]).all())


def _embeddings_are_equal(targets: Targets) -> bool:
    """True if a teacher embeds documents that differ, and all of them alike."""
    if targets.teacher is None or not bool((targets.document_hashes != targets.document_hashes[:1]).any()):
        return False
    vectors = targets.teacher.documents.vectors
    return bool((vectors[:2] == vectors[:1]).all()) and bool((vectors == vectors[:1]).all())


def _lack_of_direction(targets: Targets, direction: str, *, private: bool = False) -> Lack | None:
    """The lack of a batch in which no anchor has a negative. Where a document has one, so has its query: `both`."""
    if direction != "document_to_query":
        return _without_negatives(targets, private=private)
    return None if _has_compared_column(targets, private=private) else _NO_NEGATIVE


def _without_negatives(targets: Targets, *, private: bool = False) -> Lack | None:
    """The lack of a batch in which no query has both a positive and a negative."""
    for rows in _STRIPS:
        for masks in mask_strips(targets, rows, private_negatives=private):
            if bool((masks.positive.any(dim=1) & masks.negative.any(dim=1)).any()):
                return None
            if rows == _STRIPS[0]:
                break  # the rest in larger strips
    return _NO_NEGATIVE


def _has_compared_document(targets: Targets) -> bool:
    """True if some positive has another document as a negative."""
    positive = torch.zeros_like(targets.document_hashes, dtype=torch.bool)
    positive[targets.positives.values] = True
    strips = document_mask_strips(targets, _STRIPS[1])
    return any(bool((m.negative.any(dim=1) & positive[m.start : m.start + len(m.negative)]).any()) for m in strips)


def _has_compared_column(targets: Targets, *, private: bool) -> bool:
    """True if some document is a positive of one query and a negative of another."""
    positive = torch.zeros_like(targets.document_hashes, dtype=torch.bool)
    negative = positive.clone()
    for masks in mask_strips(targets, _STRIPS[1], private_negatives=private):
        positive |= masks.positive.any(dim=0)
        negative |= masks.negative.any(dim=0)
        if bool((positive & negative).any()):
            return True
    return False
