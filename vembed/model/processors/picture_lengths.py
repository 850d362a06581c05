"""How many tokens pictures take, remembered by their sizes: counting costs as much as tokenising them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_SPARE = 8  # tokens; where a text stands beside pictures, a template may part them otherwise
_MOST_KEPT = 10_000
_SMALL = 64  # numbers; a tensor of so few says how large pictures are


class PictureLengths:
    """The numbers of tokens by `count`, which is given the tensors of an item's pictures (`PictureParts.read`)."""

    def __init__(self, count: Callable[[Mapping[str, Tensor]], int]) -> None:
        self._count = count
        self._counted: dict[object, int] = {}

    def fits(self, read: Mapping[str, Tensor], max_length: int) -> bool:
        """True if the pictures surely leave room within `max_length`; else they have to be tokenised to know."""
        key = tuple((name, _size_key(value)) for name, value in sorted(read.items()))
        if key not in self._counted:
            if len(self._counted) >= _MOST_KEPT:
                self._counted.clear()
            self._counted[key] = self._count(read)
        return self._counted[key] + _SPARE <= max_length


def _size_key(value: Tensor) -> Any:  # Any: nested lists of numbers, as a text
    """The shape and, of small tensors, the values: grids, counts of tiles."""
    return (tuple(value.shape), repr(value.tolist()) if value.numel() <= _SMALL else "")
