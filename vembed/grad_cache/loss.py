"""Contrastive losses of plain tensors, for loops of one's own (`vembed.losses` has those of a run).

For queries x [queries, dim] and documents y [documents, dim], a scale s and the column t_i of query i's document,

    loss = mean over i of  -log softmax_j( s x_i . y_j )[t_i]

Inner products, so vectors are to be normalised for cosines. This is `infonce` in the direction query_to_document.
van den Oord, Li and Vinyals 2018, https://arxiv.org/abs/1807.03748.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import at_least_float32
from vembed.utils.distributed import gather_rows, gather_rows_with_gradient, group_rank

Reduction = Literal["mean", "sum"]


class SimpleContrastiveLoss:
    """Each query picks its document out of all documents.

    n_hard_negatives: documents stand as each query's own and then so many negatives of it, query by query.
    scale: inverse temperature, a number or a learned tensor.

    >>> SimpleContrastiveLoss()(torch.zeros(2, 3), torch.zeros(2, 3))  # log 2
    tensor(0.6931)
    """

    def __init__(self, n_hard_negatives: int = 0, scale: float | Tensor = 1.0) -> None:
        if n_hard_negatives < 0:
            raise UsageError(f"n_hard_negatives: {n_hard_negatives} must be at least 0")
        self.n_hard_negatives = n_hard_negatives
        self.scale = scale

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
        """The loss, a scalar. x: [queries, dim]; y: [documents, dim]; target: int64 [queries], each query's column."""
        return _contrast(x, y, self._columns(x, y, target), self.scale, reduction)

    def _columns(self, x: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """Each query's column, int64 [queries]: that of `target`, or of the documents' order."""
        for reps in (x, y):
            if not isinstance(reps, Tensor) or reps.ndim != 2:
                kind = f"of shape {tuple(reps.shape)}" if isinstance(reps, Tensor) else f"a {type(reps).__name__}"
                raise UsageError(
                    f"representations must be tensors [rows, dim], not {kind}; GradCache takes a get_rep_fn that picks"
                    " them out of what a model returns"
                )
        if target is not None:
            return _checked(target, x, y)
        per_query = 1 + self.n_hard_negatives
        if len(y) != len(x) * per_query:
            raise UsageError(
                f"{len(x)} queries with n_hard_negatives {self.n_hard_negatives} have {len(x) * per_query} documents,"
                f" not {len(y)}; or give target, each query's column"
            )
        return torch.arange(0, len(y), per_query, device=x.device)


class DistributedContrastiveLoss(SimpleContrastiveLoss):
    """The same over the rows of all ranks: each query picks its document out of everybody's.

    Every rank has the same loss. Its gradient reaches the rank's own rows alone, multiplied by the number of ranks, so
    that averaging over ranks, as DDP does, leaves the gradient of one process with all rows; a scale that learns has
    its whole gradient on every rank. `target` counts this rank's own documents. Without a process group there is one
    rank.
    """

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
        """As SimpleContrastiveLoss, on every rank at once; ranks may have differing numbers of rows."""
        own = self._columns(x, y, target)
        documents = gather_rows_with_gradient(y)
        before = sum(len(part) for part in documents[: group_rank()])
        columns = torch.cat(gather_rows(own + before))
        return _contrast(torch.cat(gather_rows_with_gradient(x)), torch.cat(documents), columns, self.scale, reduction)


def _contrast(x: Tensor, y: Tensor, columns: Tensor, scale: float | Tensor, reduction: Reduction) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        x, y = at_least_float32((x, y))
        return functional.cross_entropy(x @ y.T * scale, columns, reduction=reduction)


def _checked(target: Tensor, x: Tensor, y: Tensor) -> Tensor:
    if target.shape != (len(x),) or (len(target) and not 0 <= int(target.min()) <= int(target.max()) < len(y)):
        raise UsageError(f"target must be {len(x)} columns from 0 to {len(y) - 1}, one per query")
    return target
