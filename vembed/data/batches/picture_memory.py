"""Pictures of loaded rows in memory of their own, apart from the allocator's.

Decoding takes and frees memory all the time. A picture that stays for a whole batch, allocated in the midst of that,
leaves gaps on both sides that nothing fits into: a fifth of what the pictures themselves take. So the pictures of a few
rows are moved together into pages that the system gives and takes back as a whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vembed.types import HeldItem, LoadedExample, LoadedItem
from vembed.utils.memory import own_pages

_SMALLEST = 4096  # bytes; what is smaller leaves no gaps that matter
_ALIGNMENT = 64


def in_pages(rows: Sequence[LoadedExample]) -> list[LoadedExample]:
    """The same rows, with the tensors of their pictures side by side; they are freed together."""
    items = {id(item): item for row in rows for item in _items(row) if isinstance(item, LoadedItem)}
    tensors = {id(tensor): tensor for item in items.values() for tensor in _large(item)}
    moved = dict(zip(tensors, _moved(list(tensors.values())), strict=True))
    held = {key: _with_tensors(item, moved) for key, item in items.items()}

    def new(item: HeldItem) -> HeldItem:
        return held.get(id(item), item)

    return [
        replace(
            row,
            query=new(row.query),
            positives=tuple(map(new, row.positives)),
            negatives=tuple(map(new, row.negatives)),
            query_image=None if row.query_image is None else new(row.query_image),
        )
        for row in rows
    ]


def _items(row: LoadedExample) -> Iterable[HeldItem]:
    yield from (row.query, *row.positives, *row.negatives)
    if row.query_image is not None:
        yield row.query_image


def _large(item: LoadedItem) -> Iterable[Tensor]:
    return (tensor for image in item.images for tensor in image.values() if tensor.nbytes >= _SMALLEST)


def _with_tensors(item: LoadedItem, moved: Mapping[int, Tensor]) -> LoadedItem:
    images = tuple({name: moved.get(id(value), value) for name, value in image.items()} for image in item.images)
    return replace(item, images=images)


def _moved(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the tensors in one run of pages."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    if not sizes:
        return []
    places = torch.split(own_pages(sum(sizes)), sizes)
    copies = [
        place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for place, tensor in zip(places, tensors, strict=True)
    ]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor)
    return copies
