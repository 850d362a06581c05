"""Gradient caching: the exact gradient of a loss over a whole batch, in the memory of one chunk.

A contrastive loss needs the embeddings of all rows at once, but the memory of a step is the encoders' activations, not
the embeddings. So (Gao, Zhang, Han and Callan 2021, https://arxiv.org/abs/2101.06983):

1. every chunk of rows is embedded without a graph, after its random state was noted;
2. the loss of all embeddings is taken and differentiated as far as the embeddings: that gradient is the cache;
3. every chunk is embedded again under its noted random state, now with a graph, and its part of the cache is passed
   back through it. Then its graph is freed.

For one side, that is

    for chunk in chunks:                                             # move 1
        chunk.state = random state
        with torch.no_grad(): chunk.leaf = encode(chunk.inputs)      # [rows, dim]
        chunk.leaf.requires_grad_()
    loss_function(torch.cat([chunk.leaf for chunk in chunks])).backward()    # move 2: fills chunk.leaf.grad, the cache
    for chunk in chunks:                                             # move 3
        with chunk.state: encode(chunk.inputs).backward(chunk.leaf.grad)

Parameters that only the loss reads (a temperature) get their gradient in move 2. When every side is one chunk there is
nothing to save, and one forward with a graph does: the plain step.

The last chunk of move 1 is embedded with a graph at once, which is kept through move 2 and needs no second forward.
Move 3 begins with it, so that its graph is gone when the other chunks come: that costs no memory, for move 3 holds the
graph of one chunk at a time anyway. More chunks may keep theirs: memory for time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vembed.grad_cache.cachex.tree_utils import as_leaves, at_least_float32, concat_rows, list_tensors, split_rows
from vembed.grad_cache.context_managers import AutocastContext, RandContext

LossScale = float | Callable[[Tensor], Tensor]
_ROUNDING = 1e-9  # 0.3 x 10 chunks is 3 of them


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
    """A chunk's embeddings as leaves, whose gradient is the cache, and `outputs`, which gives them with a graph."""

    embeddings: Any  # Any: a tree, as above
    outputs: Callable[[], list[Tensor]]


def cached_backward(
    sides: Sequence[ChunkedSide],
    loss_function: Callable[..., Tensor],
    *,
    loss_scale: LossScale = 1.0,
    retain: float = 0.0,
) -> Tensor:
    """Add the gradient of `loss_function(embeddings of each side)` to the `.grad` of all parameters; return the loss.

    The loss is a scalar over the whole batch; it gets its embeddings in float32 (float64 stays). Its value comes back
    detached and unscaled; `loss_scale`, a factor or a function such as `GradScaler.scale`, acts on the gradient alone.
    retain: the share of all chunks, from 0 to 1, that keep their graphs: the last ones, and one in any case.

    >>> weight = torch.tensor(2.0, requires_grad=True)
    >>> side = ChunkedSide(lambda inputs: inputs * weight, torch.tensor([1.0, 2.0, 3.0]), chunk_size=1)
    >>> cached_backward([side], lambda embeddings: embeddings.sum() ** 2)  # (6 weight) ** 2
    tensor(144.)
    >>> weight.grad  # 2 (6 weight) 6
    tensor(144.)
    """
    embeddings, pass_back = embed_sides(sides, retain)
    loss = loss_function(*embeddings)
    del embeddings  # the loss's graph holds what it needs of them; the rest is freed before its backward
    torch.autograd.backward(loss_scale(loss) if callable(loss_scale) else loss * loss_scale)
    loss = loss.detach()  # lets go of the loss's graph before move 3 makes others
    pass_back()
    return loss


def embed_sides(sides: Sequence[ChunkedSide], retain: float = 0.0) -> tuple[list[Any], Callable[[], None]]:
    """Move 1, and move 3 for later: the embeddings of each side, and what passes their gradient on to the parameters.

    Between them comes the backward of a loss of the embeddings. One chunk per side has its graph, and nothing is left
    to do; else the embeddings' graph begins at leaves, whose gradient `pass_back()`, called once, takes from there.
    """
    chunks = [side.chunks() for side in sides]
    if all(len(parts) == 1 for parts in chunks):
        embeddings = [at_least_float32(side.encode(parts[0])) for side, parts in zip(sides, chunks, strict=True)]
        return embeddings, _nothing_to_pass_back
    cached = _embed_all(sides, chunks, num_retained(sum(map(len, chunks)), retain))
    joined = [concat_rows([chunk.embeddings for chunk in side]) for side in cached]  # [rows, dim] of each side
    waiting = [chunk for side in cached for chunk in side]

    def pass_back() -> None:
        # Those with a graph first, which are the last; taken off the list, so that each one's graph is freed after it.
        while waiting:
            _pass_back(waiting.pop())

    return joined, pass_back


def _nothing_to_pass_back() -> None:
    """Embeddings with their own graph pass the gradient on by themselves, in the backward of the loss."""


def embed_for_replay(encode: Callable[[Any], Any], inputs: Any) -> tuple[Any, Callable[[Any], None]]:
    """Moves 1 and 3 apart, for loops of one's own: the embeddings without a graph, as leaves, and their replay.

    Once the leaves hold the loss's gradient, the replay, called with them, passes it back to the parameters. It runs
    under the autocast of now, wherever it is called.
    """
    chunk = _embed(under_autocast_of_now(encode, list_tensors(inputs)), inputs)
    return chunk.embeddings, lambda leaves: _pass_back(replace(chunk, embeddings=leaves))


def under_autocast_of_now(encode: Callable[[Any], Any], tensors: Sequence[Tensor]) -> Callable[[Any], Any]:
    """The same function, which runs under the autocast of now (on the devices of `tensors`) wherever it is called."""
    autocast = AutocastContext(*tensors)

    def encode_alike(inputs: Any) -> Any:
        torch.clear_autocast_cache()  # what an autocast around the loop has cast without a graph
        with autocast:
            return encode(inputs)

    return encode_alike


def num_retained(num_chunks: int, share: float) -> int:
    """Number of chunks that keep their graphs: no more than that share of all, but one, which costs no memory.

    >>> num_retained(16, 0.25), num_retained(7, 0.25), num_retained(10, 0.3), num_retained(10, 0)
    (4, 1, 3, 1)
    """
    return max(1, math.floor(num_chunks * share + _ROUNDING))


def _embed_all(
    sides: Sequence[ChunkedSide], chunks: Sequence[Sequence[Any]], num_with_graph: int
) -> list[list[_CachedChunk]]:
    """The chunks of each side, embedded in order, the last `num_with_graph` of all of them with a graph."""
    # Counted over the sides one after the other, so that the last ones are those of the last side.
    num_without = sum(map(len, chunks)) - num_with_graph
    cached: list[list[_CachedChunk]] = []
    for side, parts in zip(sides, chunks, strict=True):
        first, num_without = parts[:num_without], num_without - len(parts[:num_without])
        embedded = [_embed(side.encode, part) for part in first]
        cached.append(embedded + [_embed_with_graph(side.encode, part) for part in parts[len(first) :]])
    return cached


def _embed(encode: Callable[[Any], Any], inputs: Any) -> _CachedChunk:
    """The chunk's embeddings without a graph; its `outputs` embeds it again, with one."""
    random = RandContext(*list_tensors(inputs))
    with torch.no_grad():
        embeddings = as_leaves(encode(inputs))
    # Under an autocast around the whole step, torch would reuse the weights cast above, which have no graph.
    torch.clear_autocast_cache()

    def outputs() -> list[Tensor]:
        with random:  # the dropout of the first time, without which the cache is not this graph's gradient
            return list_tensors(at_least_float32(encode(inputs)))

    return _CachedChunk(embeddings, outputs)


def _embed_with_graph(encode: Callable[[Any], Any], inputs: Any) -> _CachedChunk:
    """The chunk's embeddings; its `outputs` are those very ones, with the graph that they kept."""
    embeddings = at_least_float32(encode(inputs))
    outputs = list_tensors(embeddings)
    return _CachedChunk(as_leaves(embeddings), lambda: outputs)


def _pass_back(chunk: _CachedChunk) -> None:
    """Pass the chunk's cached gradient back through its graph."""
    backward_from(chunk.outputs(), [leaf.grad for leaf in list_tensors(chunk.embeddings)])


def backward_from(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Pass each output's gradient back through its graph.

    A frozen tower's outputs have no graph, and an output that the loss did not read has no gradient: both are left out.
    """
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output.requires_grad and gradient is not None
    ]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
