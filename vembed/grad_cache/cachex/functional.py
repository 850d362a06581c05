"""Gradient caching: the exact gradient of a loss over a whole batch, in the memory of one chunk.

A contrastive loss needs the embeddings of all rows at once, but the memory of a step is the encoders' activations, not
the embeddings. So (Gao, Zhang, Han and Callan 2021, https://arxiv.org/abs/2101.06983):

1. every chunk of rows is embedded without a graph, after its random state was noted;
2. the loss of all embeddings is taken and differentiated as far as the embeddings: that gradient is the cache;
3. every chunk is embedded again under its noted random state, now with a graph, and its part of the cache is passed
   back through it. Then its graph is freed.

Parameters that only the loss reads (a temperature) get their gradient in move 2. When every side is one chunk there is
nothing to save, and one forward with a graph does: the plain step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import Tree, concat_rows, list_tensors, map_tensors, split_rows
from vembed.grad_cache.context_managers import AutocastContext, RandContext

LossScale = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChunkedSide:
    """One side of the loss: its inputs (a tree of rows), how a chunk of them is embedded, and the rows per chunk.

    `encode` is run twice per chunk and must do the same both times: it enters autocast itself, so that both passes run
    under it. It returns a tree of tensors whose first axis is rows. chunk_size None: all rows at once. `split` cuts
    inputs that are no tree, or not by rows.
    """

    encode: Callable[[Any], Any]  # Any: the inputs and embeddings are the caller's own trees
    inputs: Any
    chunk_size: int | None = None
    split: Callable[[Any, int], Sequence[Any]] = split_rows

    def chunks(self) -> list[Any]:
        """The inputs in chunks (views, no copies)."""
        return [self.inputs] if self.chunk_size is None else list(self.split(self.inputs, self.chunk_size))


@dataclass(frozen=True)
class _CachedChunk:
    """A chunk that was embedded without a graph: what it takes to do it again, and its embeddings as leaves."""

    encode: Callable[[Any], Any]
    inputs: Any
    random: RandContext
    embeddings: Any


def cached_backward(
    sides: Sequence[ChunkedSide], loss_function: Callable[..., Tensor], *, loss_scale: LossScale = 1.0
) -> Tensor:
    """Add the gradient of `loss_function(embeddings of each side)` to the `.grad` of all parameters; return the loss.

    The loss is a scalar over the whole batch; it gets its embeddings in float32 (float64 stays). Its value comes back
    detached and unscaled; `loss_scale`, a factor or a function such as `GradScaler.scale`, acts on the gradient alone.
    """
    chunks = [side.chunks() for side in sides]
    if all(len(parts) == 1 for parts in chunks):
        embeddings = [_in_float(side.encode(parts[0])) for side, parts in zip(sides, chunks, strict=True)]
        return _backward(loss_function(*embeddings), loss_scale)
    cached = [[_embed(side.encode, part) for part in parts] for side, parts in zip(sides, chunks, strict=True)]
    # Under an autocast around the whole step, torch 2.9 would reuse the weights cast above, which have no graph.
    torch.clear_autocast_cache()
    joined = [concat_rows([chunk.embeddings for chunk in side]) for side in cached]
    loss = _backward(loss_function(*joined), loss_scale)
    del joined
    for side in cached:
        while side:
            _replay(side.pop(0))
    return loss


def embed_for_replay(encode: Callable[[Any], Any], inputs: Any) -> tuple[Any, Callable[[Any], None]]:
    """Moves 1 and 3 apart, for loops of one's own: the embeddings without a graph, as leaves, and their replay.

    Once the leaves hold the loss's gradient, the replay, called with them, passes it back to the parameters. It runs
    under the autocast of now, wherever it is called.
    """
    autocast = AutocastContext(*list_tensors(inputs))

    def encode_alike(chunk: Any) -> Any:
        torch.clear_autocast_cache()  # what an autocast around the loop has cast without a graph
        with autocast:
            return encode(chunk)

    chunk = _embed(encode_alike, inputs)
    return chunk.embeddings, lambda leaves: _replay(replace(chunk, embeddings=leaves))


def _embed(encode: Callable[[Any], Any], inputs: Any) -> _CachedChunk:
    random = RandContext(*list_tensors(inputs))
    with torch.no_grad():
        embeddings = map_tensors(_as_leaf, encode(inputs))
    return _CachedChunk(encode, inputs, random, embeddings)


def _backward(loss: Tensor, loss_scale: LossScale) -> Tensor:
    scaled = loss_scale(loss) if callable(loss_scale) else loss * loss_scale
    torch.autograd.backward(scaled)
    return loss.detach()


def _replay(chunk: _CachedChunk) -> None:
    """Embed the chunk with a graph and pass its cached gradient back through it."""
    with chunk.random:
        outputs = list_tensors(_in_float(chunk.encode(chunk.inputs)))
    cached = [leaf.grad for leaf in list_tensors(chunk.embeddings)]
    # A frozen tower's outputs have no graph, and an output that the loss did not read has no gradient.
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, cached, strict=True)
        if output.requires_grad and grad is not None
    ]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [grad for _, grad in pairs])


def _as_leaf(tensor: Tensor) -> Tensor:
    leaf = _float32(tensor.detach())
    return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def _in_float(tree: Tree) -> Tree:
    return map_tensors(_float32, tree)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
