"""Preference: Direct Preference Optimization on scores, against the model as it was before training.

A model of scores s is a policy that picks a document with probability exp(s_qd) / sum over others o of exp(s_qo).
Between two documents of one query the sum cancels, so that of a query q, a chosen document c (a positive that its row
names) and a rejected one r (a negative that it names)

    loss = -log sigmoid( beta h ),   h = (s_qc - s_qr) - (ref_qc - ref_qr)

averaged over all such triplets; ref are the scores of the reference, which stays as it was. Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290. With label smoothing e, a share e of the preferences counts as the wrong way round
(conservative DPO, Mitchell 2023, https://ericmitchell.ai/cdpo.pdf):

    loss = -(1 - e) log sigmoid( beta h ) - e log sigmoid( -beta h )

Scores are divided by the temperature, those of the reference by the same, so that the loss starts at log 2. It is taken
as given: to the preferences a learned temperature would be one more beta, and fall without end. It learns from the
InfoNCE term, which `preference_infonce_weight` adds.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import num_rows
from vembed.losses.explicit_triplets import Triplets, explicit_triplets
from vembed.losses.functions.infonce import infonce
from vembed.losses.objective import ScoreView, has_tokens
from vembed.losses.settings import InfoNCESettings, PreferenceSettings
from vembed.types import Sides, Targets


def preference(view: ScoreView, targets: Targets, settings: PreferenceSettings) -> Tensor:
    """The loss, a scalar; 0 without any triplet. Raises UsageError for targets without a reference."""
    if targets.reference is None:
        raise UsageError("loss_type preference compares with Targets.reference; vembed.training.dpo.Reference makes it")
    triplets = _with_real_tokens(explicit_triplets(targets), view)
    reward_margins = _score_margins(view, triplets) - _score_margins(_reference_view(view, targets.reference), triplets)
    losses = preference_losses(settings.preference_beta * reward_margins, settings.preference_label_smoothing)
    loss = losses.sum() / max(1, len(losses))
    if settings.preference_infonce_weight:
        loss = loss + settings.preference_infonce_weight * infonce(view, targets, InfoNCESettings())
    return loss


def preference_losses(reward_margins: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The formula for each beta h [triplets].

    >>> preference_losses(torch.tensor([0.0, 4.0]))  # log 2, and little left to learn
    tensor([0.6931, 0.0181])
    """
    losses = -functional.logsigmoid(reward_margins)
    return losses + label_smoothing * reward_margins if label_smoothing else losses


def _reference_view(view: ScoreView, reference: Sides) -> ScoreView:
    return replace(view, queries=reference.queries, documents=reference.documents)


def _score_margins(view: ScoreView, triplets: Triplets) -> Tensor:
    """By how much each chosen document leads the rejected one, [triplets]; the temperature gets no gradient."""
    steady = replace(view, scale=view.scale.detach(), bias=None)
    num_documents = num_rows(view.documents)
    sides = torch.stack([triplets.positives, triplets.negatives])
    pairs, places = torch.unique(triplets.queries * num_documents + sides, return_inverse=True)  # each is scored once
    scores = steady.pairs(pairs // num_documents, pairs % num_documents)[places]  # [2, triplets]
    return scores[0] - scores[1]


def _with_real_tokens(triplets: Triplets, view: ScoreView) -> Triplets:
    """The triplets of which every member has a real token."""
    queries, documents = has_tokens(view.queries), has_tokens(view.documents)
    real = queries[triplets.queries] & documents[triplets.positives] & documents[triplets.negatives]
    return Triplets(triplets.queries[real], triplets.positives[real], triplets.negatives[real])
