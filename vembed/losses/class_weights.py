"""Weights of classes, which a loss learns beside the model: training state, no part of what is deployed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vembed.scoring import l2_normalize


@dataclass(frozen=True)
class ClassCentres:
    """The weights of all classes as a loss reads them.

    keys: int64 [classes], ascending, the groups that rows name. vectors: [classes * per_class, dim], a class's
    centres one after the other.
    """

    keys: Tensor
    vectors: Tensor
    per_class: int = 1


class ClassWeights(nn.Module):
    """The weights of classes, float32 [classes * per_class, dim], of length 1 at first; they belong to the objective.

    keys: the classes, in any order. learning_rate: theirs in the optimiser, before the schedule.
    """

    keys: Tensor

    def __init__(self, keys: Sequence[int], dim: int, *, per_class: int, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self._per_class = per_class
        self.register_buffer("keys", torch.tensor(sorted(set(keys)), dtype=torch.int64))
        drawn = torch.randn(len(self.keys) * per_class, dim, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(l2_normalize(drawn))

    def forward(self) -> ClassCentres:
        """The weights as they are now."""
        return ClassCentres(self.keys, self.weight, self._per_class)
