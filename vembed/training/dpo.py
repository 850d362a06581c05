"""The reference of preference optimisation: a model as it was before its training.

    frozen_copy                what learns is held once more, at its start; all else is the model's own
    Reference.embed            a batch's side as the reference sees it, chunk by chunk
    Objective                  reads it as Targets.reference (vembed.losses.functions.preference)

Of a model that learns whole, that is a copy. Of one with LoRA, it is the adapters switched off, and heads and
projections that learn beside them at their start; adapters that were opened to learn on stay as they were opened.

A run that is continued makes the reference from the model that it started from, before it reads the checkpoint.
"""

import copy

import torch

from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.grad_cache.cachex.tree_utils import concat_rows, map_tensors
from vembed.model.adapters.layers import without_idle_adapters
from vembed.model.base import BaseEmbeddingModel
from vembed.model.learning.compilation import compile_towers, is_compiled
from vembed.scoring import at_least_float32
from vembed.training.rng import rng_unmoved
from vembed.training.run.tensors import checksum, named_parameters
from vembed.types import Embeddings


class Reference:
    """The model as it is when this is made, whatever it learns later.

    start: a sum over the weights that it does not share with the model; equal for equal starts.
    """

    def __init__(self, model: BaseEmbeddingModel) -> None:
        self.model = frozen_copy(model)
        self.start = checksum(named_parameters(model))

    def embed(self, side: ChunkedSide) -> Embeddings:
        """The side's embeddings, in float32 (float64 stays) and without a graph; `side.encode` runs this model.

        Leaves the random generators as they were.
        """
        with torch.no_grad(), rng_unmoved():
            chunks: list[Embeddings] = [map_tensors(_as_scored, side.encode(chunk)) for chunk in side.chunks()]
        return concat_rows(chunks)

    def num_bytes(self, model: BaseEmbeddingModel) -> int:
        """Memory that the reference takes beside the model that it was made of."""
        shared = {id(tensor) for tensor in model.parameters()}
        own = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in own if id(tensor) not in shared)


def frozen_copy(model: BaseEmbeddingModel) -> BaseEmbeddingModel:
    """A copy that gives the same embeddings and learns nothing, in eval mode.

    Parameters that do not learn are shared, not copied. Adapters that do nothing yet are left out.
    """
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    copied = copy.deepcopy(model, memo=dict(frozen))
    for backbone in copied.backbones().values():
        without_idle_adapters(backbone)
    if is_compiled(model):
        compile_towers(copied)  # compiled code is not copied
    copied.requires_grad_(False)
    return copied.eval()


def _as_scored(tensor: torch.Tensor) -> torch.Tensor:
    return at_least_float32(tensor) if tensor.is_floating_point() else tensor
