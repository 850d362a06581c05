"""Rows of nested tensors: count them, cut them, join them, move them.

A tree (JAX's pytree) is a tensor, one of the values of `vembed.types` (Inputs, ItemRows, Ragged, Embeddings), or a
mapping, list, tuple or dataclass of trees. The first axis of a tensor is rows, with two exceptions:

    Ragged      values [slices, ...], of which row r owns the next counts[r]; they go wherever their row goes
    ItemRows    its items are rows, and no tensor that they hold is mapped or moved

Anything that is no tensor (None, a number, a string) belongs to all rows and is carried along. Of a Ragged, rows are

    ends = counts.cumsum(0);  starts = ends - counts
    torch.cat([values[starts[row] : ends[row]] for row in rows]), counts[rows]

Nothing is guessed from the names of keys, and nothing but rows is cut: columns of padding stay, because only the
model's processor knows which columns are padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vembed.errors import UsageError
from vembed.types import Embeddings, Inputs, ItemRows, Ragged

Tree = TypeVar("Tree")


def num_rows(tree: object) -> int:
    """How many rows a tree holds. Raises UsageError when its tensors disagree, or when it has none.

    >>> num_rows({"a": torch.zeros(3, 2), "b": [torch.zeros(3)]})
    3
    """
    sizes = set(_row_counts(tree))
    if not sizes:
        raise UsageError("there is no tensor in it")
    if len(sizes) != 1:
        raise UsageError(f"the tensors of one side must have the same number of rows, but have {sorted(sizes)}")
    return sizes.pop()


def take_rows(tree: Tree, start: int, stop: int) -> Tree:
    """Rows start to stop (not included) of every tensor, as views.

    >>> take_rows(Ragged(torch.tensor([7, 8, 9]), torch.tensor([2, 0, 1])), 1, 3).values
    tensor([9])
    """
    return _pick(tree, slice(start, stop))


def select_rows(tree: Tree, index: Tensor) -> Tree:
    """The rows numbered by `index` (int64 [rows]), in that order; a row may be named more than once.

    >>> select_rows(Ragged(torch.tensor([7, 8, 9]), torch.tensor([2, 0, 1])), torch.tensor([2, 0])).values
    tensor([9, 7, 8])
    """
    return _pick(tree, index)


def split_rows(tree: Tree, chunk_size: int) -> list[Tree]:
    """The tree in chunks of `chunk_size` rows, the last one perhaps smaller; a tree of no rows is one chunk."""
    rows = num_rows(tree)
    return [take_rows(tree, start, min(start + chunk_size, rows)) for start in range(0, max(rows, 1), chunk_size)]


def concat_rows(trees: Sequence[Tree]) -> Tree:
    """Trees of the same form, joined along their rows.

    Embeddings [rows, tokens, dim] with differing token counts are padded with zeros at the end, and masked. All other
    tensors must agree beyond their first axis: padding them is the business of the processor that made them.
    """
    first = trees[0]  # the form of all: which kind of tree stands at each place
    if isinstance(first, Tensor):
        return cast(Tree, _concat_tensors(cast(Sequence[Tensor], trees)))
    if isinstance(first, Embeddings):
        return cast(Tree, _concat_embeddings(cast(Sequence[Embeddings], trees)))
    if isinstance(first, Inputs):
        return cast(Tree, _concat_inputs(cast(Sequence[Inputs], trees)))
    if isinstance(first, ItemRows):
        return cast(Tree, _concat_items(cast(Sequence[ItemRows], trees)))
    if _is_branch(first):
        parts = zip(*(_children(tree) for tree in trees), strict=True)
        return _rebuild(first, [concat_rows(part) for part in parts])
    if any(tree != first for tree in trees):  # one value has to speak for all rows
        raise UsageError(f"values without rows must be equal to be joined, but are {list(trees)}")
    return first


def token_rows(embeddings: Embeddings) -> list[Tensor]:
    """The real vectors of each row, [tokens, dim] each, without padding.

    >>> token_rows(Embeddings(torch.tensor([[[1.0], [9.0]]]), torch.tensor([[True, False]])))
    [tensor([[1.]])]
    """
    if embeddings.mask is None:
        return list(embeddings.vectors)
    return [row[real] for row, real in zip(embeddings.vectors, embeddings.mask, strict=True)]


def pad_token_rows(rows: Sequence[Tensor]) -> Embeddings:
    """Rows of vectors [tokens, dim] with differing token counts, padded to [rows, tokens, dim], with their mask."""
    return concat_rows([Embeddings(row[None]) for row in rows])  # each [1, tokens, dim]


def ragged_tokens(embeddings: Embeddings) -> Ragged:
    """The real vectors of all rows one after the other, [tokens, dim], and how many each row has: no padding is kept.

    >>> ragged_tokens(Embeddings(torch.tensor([[[1.0], [9.0]]]), torch.tensor([[True, False]]))).values
    tensor([[1.]])
    """
    vectors, mask = embeddings.vectors, embeddings.mask
    if mask is None:
        mask = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    return Ragged(vectors[mask], mask.sum(dim=1))  # [real tokens, dim], in order of rows


def pad_tokens(tokens: Ragged) -> Embeddings:
    """The inverse of `ragged_tokens`: [rows, tokens, dim], zeros after each row's own tokens, and the mask.

    >>> pad_tokens(Ragged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 1]))).vectors.squeeze(-1)
    tensor([[1., 2.],
            [3., 0.]])
    """
    counts = tokens.counts
    longest = max([1, *counts.tolist()])
    mask = torch.arange(longest, device=counts.device) < counts[:, None]  # [rows, tokens]
    vectors = tokens.values.new_zeros(*mask.shape, tokens.values.shape[-1])  # [rows, tokens, dim]
    vectors[mask] = tokens.values  # both are in order of rows
    return Embeddings(vectors, mask)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The tree with `function` applied to each of its tensors (counts and masks included)."""
    if isinstance(tree, Tensor):
        return cast(Tree, function(tree))
    if _is_branch(tree):
        return _rebuild(tree, [map_tensors(function, child) for child in _children(tree)])
    return tree


def at_least_float32(tree: Tree) -> Tree:
    """The tree with its float16 and bfloat16 tensors in float32.

    >>> at_least_float32([torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int64)])
    [tensor([1.]), tensor([1])]
    """
    return map_tensors(lambda one: one.float() if one.dtype in (torch.float16, torch.bfloat16) else one, tree)


def as_leaves(tree: Tree) -> Tree:
    """The tree detached from its graph, in at least float32, its floating tensors as leaves that take a gradient."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor

    return map_tensors(leaf, at_least_float32(tree))


def list_tensors(tree: object) -> list[Tensor]:
    """All tensors of a tree, in a fixed order (the order in which `map_tensors` visits them)."""
    if isinstance(tree, Tensor):
        return [tree]
    if _is_branch(tree):
        return [tensor for child in _children(tree) for tensor in list_tensors(child)]
    return []


def move(tree: Tree, device: torch.device | str) -> Tree:
    """The tree with all of its tensors on `device`."""
    return map_tensors(lambda tensor: tensor.to(device), tree)


def _is_branch(tree: object) -> bool:
    """Whether a tree has children, rather than being a leaf: a tensor, ItemRows, or what has no rows."""
    if isinstance(tree, ItemRows):  # a dataclass, but its tensors are pictures, whose first axis is no rows
        return False
    return isinstance(tree, Mapping | list | tuple) or (is_dataclass(tree) and not isinstance(tree, type))


def _children(tree: object) -> list[Any]:  # Any: a tree holds whatever its owner put in
    """The children of a branch, in the order in which `_rebuild` takes them."""
    if isinstance(tree, Mapping):
        return list(tree.values())
    if isinstance(tree, list | tuple):
        return list(tree)
    return list(vars(tree).values())


def _rebuild(tree: Tree, children: list[Any]) -> Tree:  # Any: as in _children
    """A tree of the same form as `tree` with other children."""
    if isinstance(tree, Mapping):
        return cast(Tree, dict(zip(tree, children, strict=True)))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a NamedTuple takes its fields one by one
        return cast(Tree, type(tree)(*children))
    if isinstance(tree, list | tuple):
        return cast(Tree, type(tree)(children))
    return cast(Tree, replace(cast(Any, tree), **dict(zip(vars(tree), children, strict=True))))  # Any: some dataclass


def _row_counts(tree: object) -> Iterator[int]:
    """The number of rows of each part, which must all be the same."""
    if isinstance(tree, Tensor):
        yield tree.shape[0]
    elif isinstance(tree, Ragged):
        yield tree.counts.shape[0]  # its slices may be any number
    elif isinstance(tree, Inputs):
        yield tree.num_rows  # known even of rows without a tensor
        yield from _row_counts(tree.tensors)
    elif isinstance(tree, ItemRows):
        yield tree.num_rows
    elif _is_branch(tree):
        for child in _children(tree):
            yield from _row_counts(child)


def _pick(tree: Tree, rows: slice | Tensor) -> Tree:
    """`tree[rows]`, for rows that are a range (views) or int64 numbers [rows] (copies)."""
    if isinstance(tree, Tensor):
        return cast(Tree, tree[rows])
    if isinstance(tree, Ragged):
        return cast(Tree, Ragged(_pick_slices(tree, rows), tree.counts[rows]))
    if isinstance(tree, Inputs):
        count = len(range(tree.num_rows)[rows]) if isinstance(rows, slice) else len(rows)
        # How many texts were cut is known of the whole batch only, not of its rows.
        return cast(Tree, Inputs(count, _pick(tree.tensors, rows)))
    if isinstance(tree, ItemRows):
        items = tree.items[rows] if isinstance(rows, slice) else tuple(tree.items[row] for row in rows.tolist())
        return cast(Tree, replace(tree, items=items))
    if _is_branch(tree):
        return _rebuild(tree, [_pick(child, rows) for child in _children(tree)])
    return tree


def _pick_slices(ragged: Ragged, rows: slice | Tensor) -> Tensor:
    """The slices of the rows, [slices, ...], without a loop over rows."""
    ends = ragged.counts.cumsum(0)  # [all rows]: where each row's slices end among all
    starts = ends - ragged.counts
    if isinstance(rows, slice):  # rows that lie together have slices that do: a view
        if len(ends[rows]) == 0:
            return ragged.values[:0]
        return ragged.values[int(starts[rows][0]) : int(ends[rows][-1])]
    chosen = ragged.counts[rows]  # [rows]
    # The slices of a row lie side by side, before and after: a slice at position i of the result comes from i + shift.
    shift = starts[rows] - (chosen.cumsum(0) - chosen)  # [rows]: first slice in values less first slice in the result
    shifts = torch.repeat_interleave(shift, chosen)  # [slices]
    return ragged.values[shifts + torch.arange(len(shifts), device=shifts.device)]


def _concat_tensors(tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) != 1:
        raise UsageError(f"tensors to be joined must agree beyond their first axis, but have {sorted(shapes)} there")
    return torch.cat(list(tensors))


def _concat_inputs(parts: Sequence[Inputs]) -> Inputs:
    tensors = concat_rows([part.tensors for part in parts])
    return Inputs(sum(part.num_rows for part in parts), tensors, sum(part.num_truncated for part in parts))


def _concat_items(parts: Sequence[ItemRows]) -> ItemRows:
    sides = {part.side for part in parts}
    if len(sides) != 1:
        raise UsageError("queries and documents cannot be joined: their texts get different prompts")
    return ItemRows(tuple(item for part in parts for item in part.items), sides.pop())


def _concat_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    tokens = {part.vectors.shape[1] for part in parts if part.vectors.ndim == 3}  # {}: one vector a row
    # Without a mask all tokens are real; beside parts with one, or longer ones, that has to be said.
    if len(tokens) > 1 or len({part.mask is None for part in parts}) > 1:
        parts = [_pad_tokens(part, max(tokens)) for part in parts]
    masks = [part.mask for part in parts if part.mask is not None]
    return Embeddings(_concat_tensors([part.vectors for part in parts]), torch.cat(masks) if masks else None)


def _pad_tokens(part: Embeddings, tokens: int) -> Embeddings:
    """The same embeddings, padded to `tokens` tokens: [rows, tokens, dim] and their mask [rows, tokens]."""
    mask = part.mask
    if mask is None:
        mask = torch.ones(part.vectors.shape[:2], dtype=torch.bool, device=part.vectors.device)
    missing = tokens - mask.shape[1]
    vectors = torch.nn.functional.pad(part.vectors, (0, 0, 0, missing))  # zeros after the last token, none in dim
    return Embeddings(vectors, torch.nn.functional.pad(mask, (0, missing), value=False))
