"""Gradient caching in loops of one's own: what embeds a chunk, and what makes a loss of many, as decorators.

    @cached
    def embed(model, inputs):
        return model(**inputs).pooler_output

    @cat_input_tensor
    def loss_of(queries, documents):
        return contrastive(queries, documents)

    queries, replays = zip(*[embed(model, chunk) for chunk in chunks])   # no graph is kept
    documents, more_replays = ...
    loss_of(queries, documents).backward()                               # as far as the embeddings
    for leaf, replay in zip(queries, replays):
        replay(leaf)                                                     # each chunk again, with its gradient

docs/grad-cache.md has such a loop in full.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from vembed.errors import UsageError
from vembed.grad_cache.cachex.functional import embed_for_replay
from vembed.grad_cache.cachex.tree_utils import concat_rows, list_tensors
from vembed.types import Embeddings
from vembed.utils.distributed import gather_rows

P = ParamSpec("P")
Result = TypeVar("Result")


def cached(function: Callable[P, Any]) -> Callable[P, tuple[Any, ...]]:  # Any: the caller's own representations
    """Make a function that runs a model give its representations as leaves without a graph, and last of all a replay.

    The leaves are float32 (float64 stays), one per representation that the function returns. When they hold the loss's
    gradient, `replay(leaf)` (or `replay(leaf, other_leaf)`) runs the function again, with the random numbers and under
    the autocast of its first run, and passes that gradient back to the parameters. Its arguments must not change
    between. Raises UsageError when there is no gradient yet.

    >>> layer = torch.nn.Linear(2, 2)
    >>> leaf, replay = cached(lambda rows: layer(rows))(torch.ones(3, 2))
    >>> leaf.sum().backward()
    >>> replay(leaf)
    >>> layer.bias.grad
    tensor([3., 3.])
    """

    @wraps(function)
    def embed(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
        leaves, replay = embed_for_replay(lambda call: function(*call[0], **call[1]), (args, kwargs))
        expected = len(list_tensors(leaves))

        def checked_replay(*cached_leaves: Any) -> None:
            _check_leaves(list_tensors(cached_leaves), expected)
            replay(cached_leaves)

        return (*leaves, checked_replay) if type(leaves) is tuple else (leaves, checked_replay)

    return embed


def cat_input_tensor(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let a function of whole batches take chunks: each argument that is a list or tuple of tensors is joined.

    >>> cat_input_tensor(lambda rows: rows.shape)([torch.ones(2, 3), torch.ones(1, 3)])
    torch.Size([3, 3])
    """

    @wraps(function)
    def joined(*args: Any, **kwargs: Any) -> Result:
        return function(*map(_join, args), **{name: _join(value) for name, value in kwargs.items()})

    return joined


def gather_input_tensor(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let a function of one rank's rows see those of all ranks: each positional tensor is gathered, in order of ranks.

    The rank's own rows keep their graph, the others have none: a loss over all rows, times the number of ranks, has the
    gradient of one process once the ranks' gradients are averaged. Keywords are passed on as they are. Outermost of
    both goes `cat_input_tensor`. Without a process group there is one rank.
    """

    @wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Result:
        return function(*[torch.cat(gather_rows(arg)) if isinstance(arg, Tensor) else arg for arg in args], **kwargs)

    return gathered


def _join(value: Any) -> Any:
    is_chunks = isinstance(value, list | tuple) and value and all(isinstance(p, Tensor | Embeddings) for p in value)
    return concat_rows(value) if is_chunks else value


def _check_leaves(leaves: list[Tensor], expected: int) -> None:
    if len(leaves) != expected:
        raise UsageError(f"a replay takes the {expected} representations of its own call, not {len(leaves)}")
    if all(leaf.grad is None for leaf in leaves):
        raise UsageError("the representations have no gradient to replay; call backward() on the loss of them first")
