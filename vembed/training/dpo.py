"""The reference model of preference optimisation (DPO): the model as it was before training.

    frozen_copy                copies the trainable weights, and shares the frozen ones with the model
    Reference.embed            the reference's embeddings of a side, chunk by chunk
    Objective                  reads them as Targets.reference (vembed.losses.functions.preference)

With full fine-tuning, that is a copy of the model. With new LoRA adapters, it is the shared base without adapters, and
copies of the heads and projections that train beside them. Adapters that an earlier run trained and this one trains on
belong to the model as it was, and are copied.

A resumed run makes the reference from the model that the run started from, before it loads the checkpoint's weights.
"""

import copy

import torch

from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.grad_cache.cachex.tree_utils import concat_rows, map_tensors
from vembed.model.adapters.layers import remove_zero_adapters
from vembed.model.base import BaseEmbeddingModel
from vembed.model.learning.compilation import compile_towers, is_compiled
from vembed.scoring import at_least_float32
from vembed.training.rng import preserve_rng
from vembed.training.run.tensors import tensor_checksum
from vembed.types import Embeddings


class Reference:
    """A frozen copy of the model as it is when this is made.

    start_checksum: of the weights that are trainable then, by which a resumed run finds whether it compares with the
    same reference.
    """

    def __init__(self, model: BaseEmbeddingModel) -> None:
        self.model = frozen_copy(model)
        trainable = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.start_checksum = tensor_checksum(trainable)

    def embed(self, side: ChunkedSide) -> Embeddings:
        """The side's embeddings, [rows, dim] or [rows, tokens, dim], in the order of its chunks and without a graph.

        In float32 (float64 stays), as scores are computed. `side.encode` must run `self.model`. Leaves the random
        generators as they were, so that training draws the same numbers with a reference and without.
        """
        with torch.no_grad(), preserve_rng():
            chunks: list[Embeddings] = [map_tensors(_as_scored, side.encode(chunk)) for chunk in side.chunks()]
        return concat_rows(chunks)

    def num_bytes(self, model: BaseEmbeddingModel) -> int:
        """Bytes that the reference takes beside the model that it was made of; shared weights are not counted."""
        shared = {id(tensor) for tensor in model.parameters()}
        own = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in own if id(tensor) not in shared)


def frozen_copy(model: BaseEmbeddingModel) -> BaseEmbeddingModel:
    """A copy that gives the same embeddings, frozen and in eval mode.

    Frozen parameters are shared, not copied. New LoRA adapters, whose output is still zero, are left out.
    """
    # deepcopy takes what `memo` already holds for a copy, and does not copy it.
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    copied = copy.deepcopy(model, memo=dict(frozen))
    for backbone in copied.backbones().values():
        remove_zero_adapters(backbone)
    if is_compiled(model):
        compile_towers(copied)  # deepcopy copies the modules, not their compiled code
    copied.requires_grad_(False)
    return copied.eval()


def _as_scored(tensor: torch.Tensor) -> torch.Tensor:
    return at_least_float32(tensor) if tensor.is_floating_point() else tensor
