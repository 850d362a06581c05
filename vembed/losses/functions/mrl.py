"""Matryoshka: a loss at several widths of the same embeddings, so that their first numbers are good alone.

    loss = sum over widths m of  weight_m * loss(first m numbers of every vector, of length 1 again)

The feature axis is cut, of single vectors and of tokens alike. Late interaction can be cut in tokens too: the first n
real tokens of each document. Kusupati et al. 2022, https://arxiv.org/abs/2205.13147; tokens as in Xiao et al. 2025
(MetaEmbed), https://arxiv.org/abs/2509.18095.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vembed.losses.objective import LossFunction, ScoreView
from vembed.scoring import at_least_float32, unit
from vembed.types import Embeddings, Sides, Targets


@dataclass(frozen=True)
class Cut:
    """What is left of embeddings at one level, None: all of it; and the weight of the loss there."""

    width: int | None = None
    tokens: int | None = None
    weight: float = 1.0


def matryoshka(
    view: ScoreView, targets: Targets, loss: LossFunction, cuts: Sequence[Cut], *, normalize: bool
) -> Tensor:
    """The weighted sum of the loss over all cuts, a scalar. normalize: cut vectors are of length 1 again."""
    parts = [
        cut.weight * loss(cut_view(view, cut, normalize=normalize), cut_reference(targets, cut, normalize=normalize))
        for cut in cuts
    ]
    return sum(parts[1:], parts[0])


def cut_view(view: ScoreView, cut: Cut, *, normalize: bool) -> ScoreView:
    """The scores of what a cut leaves of the embeddings, and of the centres of classes; queries keep all tokens."""
    left = _cut(Sides(view.queries, view.documents), cut, normalize=normalize)
    centres = view.centres
    if centres is not None and cut.width is not None:
        centres = replace(centres, vectors=centres.vectors[:, : cut.width])
    return replace(view, queries=left.queries, documents=left.documents, centres=centres)


def cut_reference(targets: Targets, cut: Cut, *, normalize: bool) -> Targets:
    """The targets with what a cut leaves of the reference's embeddings, which are of the same model."""
    if targets.reference is None:
        return targets
    return replace(targets, reference=_cut(targets.reference, cut, normalize=normalize))


def first_tokens(embeddings: Embeddings, tokens: int) -> Embeddings:
    """The first real tokens of each row, whichever side its padding is on."""
    mask = embeddings.mask
    if mask is None:
        return Embeddings(embeddings.vectors[:, :tokens])
    return Embeddings(embeddings.vectors, mask & (mask.cumsum(dim=1) <= tokens))


def _cut(sides: Sides, cut: Cut, *, normalize: bool) -> Sides:
    queries, documents = sides.queries, sides.documents
    if cut.width is not None and cut.width < queries.vectors.shape[-1]:
        queries, documents = (_narrow(side, cut.width, normalize=normalize) for side in (queries, documents))
    if cut.tokens is not None:
        documents = first_tokens(documents, cut.tokens)
    return Sides(queries, documents)


def _narrow(embeddings: Embeddings, width: int, *, normalize: bool) -> Embeddings:
    vectors = at_least_float32(embeddings.vectors[..., :width])
    return Embeddings(unit(vectors) if normalize else vectors, embeddings.mask)
