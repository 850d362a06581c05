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
from vembed.scoring import at_least_float32, l2_normalize
from vembed.types import Embeddings, Sides, Targets


@dataclass(frozen=True)
class MatryoshkaLevel:
    """The width and the document tokens that one level keeps of embeddings (None: all), and the loss's weight there."""

    width: int | None = None
    tokens: int | None = None
    weight: float = 1.0


def matryoshka(
    view: ScoreView, targets: Targets, loss: LossFunction, levels: Sequence[MatryoshkaLevel], *, normalize: bool
) -> Tensor:
    """The weighted sum of the loss over all levels, a scalar. normalize: cut vectors are of length 1 again."""
    parts = [
        level.weight
        * loss(
            truncated_view(view, level, normalize=normalize),
            truncated_reference(targets, level, normalize=normalize),
        )
        for level in levels
    ]
    return sum(parts[1:], parts[0])


def truncated_view(view: ScoreView, level: MatryoshkaLevel, *, normalize: bool) -> ScoreView:
    """The view of embeddings, and of the centres of classes, cut to a level; queries keep all tokens."""
    left = _truncated(Sides(view.queries, view.documents), level, normalize=normalize)
    centres = view.centres
    if centres is not None and level.width is not None:
        centres = replace(centres, vectors=centres.vectors[:, : level.width])
    return replace(view, queries=left.queries, documents=left.documents, centres=centres)


def truncated_reference(targets: Targets, level: MatryoshkaLevel, *, normalize: bool) -> Targets:
    """The targets with the reference's embeddings, which are of the same model, cut to a level."""
    if targets.reference is None:
        return targets
    return replace(targets, reference=_truncated(targets.reference, level, normalize=normalize))


def first_tokens(embeddings: Embeddings, tokens: int) -> Embeddings:
    """The first real tokens of each row, whichever side its padding is on."""
    mask = embeddings.mask
    if mask is None:
        return Embeddings(embeddings.vectors[:, :tokens])
    return Embeddings(embeddings.vectors, mask & (mask.cumsum(dim=1) <= tokens))


def _truncated(sides: Sides, level: MatryoshkaLevel, *, normalize: bool) -> Sides:
    queries, documents = sides.queries, sides.documents
    if level.width is not None and level.width < queries.vectors.shape[-1]:
        queries, documents = (
            _truncated_vectors(side, level.width, normalize=normalize) for side in (queries, documents)
        )
    if level.tokens is not None:
        documents = first_tokens(documents, level.tokens)
    return Sides(queries, documents)


def _truncated_vectors(embeddings: Embeddings, width: int, *, normalize: bool) -> Embeddings:
    vectors = at_least_float32(embeddings.vectors[..., :width])
    return Embeddings(l2_normalize(vectors) if normalize else vectors, embeddings.mask)
