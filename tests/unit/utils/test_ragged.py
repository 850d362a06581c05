"""Row numbers, pairs within rows and cells of ragged tensors, against naive loops."""

import pytest
import torch

from vembed.types import Ragged
from vembed.utils.ragged import cell_numbers, pairs_within_rows, row_numbers

ROWS = [[], [4], [3, 1, 2], [0, 0]]
OTHERS = [[5], [], [1, 4], [2, 3, 5]]


def ragged(rows):
    values = [value for row in rows for value in row]
    return Ragged(torch.tensor(values, dtype=torch.int64), torch.tensor([len(row) for row in rows], dtype=torch.int64))


@pytest.mark.parametrize("rows", [ROWS, OTHERS, [[], []], []])
def test_row_and_cell_numbers_equal_a_loop(rows):
    owners = [number for number, row in enumerate(rows) for _ in row]
    cells = [number * 6 + column for number, row in enumerate(rows) for column in row]
    assert row_numbers(ragged(rows)).tolist() == owners
    assert cell_numbers(ragged(rows), 6).tolist() == cells


@pytest.mark.parametrize(("rows", "others"), [(ROWS, OTHERS), (OTHERS, ROWS), (ROWS, [[]] * 4), ([], [])])
def test_pairs_within_rows_equal_a_loop(rows, others):
    expected, first, second = [], 0, 0
    for row, other in zip(rows, others, strict=True):
        expected += [(first + one, second + two) for one in range(len(row)) for two in range(len(other))]
        first, second = first + len(row), second + len(other)
    found = pairs_within_rows(ragged(rows), ragged(others))
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected
