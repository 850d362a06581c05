"""Row numbers of ragged tensors, and what is found by them: pairs within rows, and cells of a matrix."""

import torch
from torch import Tensor

from vembed.types import Ragged


def row_numbers(ragged: Ragged) -> Tensor:
    """Int64 [slices]: the row that owns each slice.

    >>> row_numbers(Ragged(torch.tensor([7, 8, 9]), torch.tensor([1, 0, 2])))
    tensor([0, 2, 2])
    """
    rows = torch.arange(len(ragged.counts), device=ragged.counts.device)
    return rows.repeat_interleave(ragged.counts, output_size=len(ragged.values))


def pairs_within_rows(first: Ragged, second: Ragged) -> tuple[Tensor, Tensor]:
    """Every slice of a row with every slice of the same row in `second`: their numbers, int64 [pairs] twice.

    >>> three = Ragged(torch.tensor([7, 8, 9]), torch.tensor([1, 2]))
    >>> pairs_within_rows(three, three)
    (tensor([0, 1, 1, 2, 2]), tensor([0, 1, 2, 1, 2]))
    """
    rows = row_numbers(first)
    repeats = second.counts[rows]
    pairs = torch.arange(len(rows), device=rows.device).repeat_interleave(repeats)
    steps = torch.arange(len(pairs), device=rows.device) - (repeats.cumsum(0) - repeats)[pairs]
    return pairs, (second.counts.cumsum(0) - second.counts)[rows[pairs]] + steps


def cell_numbers(columns: Ragged, num_columns: int) -> Tensor:
    """Int64 [slices]: for each row's column numbers the cells of a matrix [rows, num_columns], numbered row by row.

    >>> cell_numbers(Ragged(torch.tensor([2, 0, 1]), torch.tensor([1, 2])), 3)
    tensor([2, 3, 4])
    """
    return row_numbers(columns) * num_columns + columns.values
