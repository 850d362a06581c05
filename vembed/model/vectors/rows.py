"""Vectors of texts and images (slices) to one vector per row."""

import torch
from torch import Tensor
from torch.nn import functional

from vembed.errors import ModelError
from vembed.model.vectors.fusion import Fusion
from vembed.types import Ragged


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors [..., dim] of length 1 (L2 norm)."""
    return functional.normalize(vectors, dim=-1)


def widened(vectors: Tensor) -> Tensor:
    """Vectors of float16 or bfloat16 in float32, others as they are."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def one_vector_per_row(encoded: list[Ragged], normalize: bool, fusion: Fusion | None) -> Tensor:
    """Slices of one or two modalities, [slices, dim] each, to one vector per row [rows, dim]."""
    if len(encoded) == 1 and all(count == 1 for count in encoded[0].counts.tolist()):
        return unit_vectors(encoded[0].values) if normalize else encoded[0].values
    if {part.values.shape[1] for part in encoded} != {encoded[0].values.shape[1]}:
        raise ModelError("the towers' own features differ in width; texts and images need a batch each")
    parts = [_by_row(part, normalize) for part in encoded]
    total = parts[0] + parts[1] if len(parts) > 1 else parts[0]
    both = torch.stack([part.counts > 0 for part in encoded]).all(dim=0).nonzero()[:, 0].to(total.device)
    if fusion is not None and len(parts) > 1 and len(both):
        total = total.index_copy(0, both, fusion(parts[0][both], parts[1][both]))
    return unit_vectors(total) if normalize else total


def merged(one: Ragged, other: Ragged) -> Ragged:
    """The slices of both [slices, width] in the order of rows; each row has slices in one of the two."""
    counts = one.counts + other.counts
    rows = [torch.repeat_interleave(torch.arange(len(part.counts)), part.counts.cpu()) for part in (one, other)]
    order = torch.cat(rows).argsort(stable=True).to(other.values.device)
    return Ragged(torch.cat([one.values.to(other.values), other.values])[order], counts)


def sums_by_row(values: Tensor, counts: Tensor) -> Tensor:
    """The sum of each row's slices' values, int64 [slices], [rows]. counts: slices of each row, int64 [rows].

    >>> sums_by_row(torch.tensor([3, 4, 5]), torch.tensor([2, 0, 1]))
    tensor([7, 0, 5])
    """
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return values.new_zeros(len(counts)).index_add(0, rows.to(values.device), values)


def _by_row(part: Ragged, normalize: bool) -> Tensor:
    """The mean of each row's slices [rows, dim]; zero for a row without any.

    normalize: of the slices' unit vectors, and of length 1 itself.
    """
    counts = part.counts.to(part.values.device)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    total = part.values.new_zeros(len(counts), part.values.shape[1])
    if normalize:
        return unit_vectors(total.index_add(0, rows, unit_vectors(part.values)))
    return total.index_add(0, rows, part.values) / counts.clamp(min=1).unsqueeze(1)
