"""Checksums of tensors see every bit and every place."""

import pytest
import torch
from torch import nn

from vembed.errors import CheckpointError
from vembed.training.run.tensors import load_optimizer_tensors, tensor_checksum

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def tensors(dtype=torch.float32, numbers=9001):
    drawn = torch.randn(numbers, generator=torch.Generator().manual_seed(0)) * 50
    return {"a": drawn.to(dtype), "b": torch.arange(3.0), "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}


def flipped(tensor, byte, bit):
    changed = tensor.clone()
    changed.reshape(-1).view(torch.uint8)[byte] ^= 1 << bit
    return changed


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_every_flipped_bit_is_seen(dtype):
    whole = tensors(dtype)
    expected = tensor_checksum(whole)
    assert tensor_checksum(tensors(dtype)) == expected
    num_bytes = whole["a"].numel() * whole["a"].element_size()
    for byte in (0, 1, num_bytes // 2, num_bytes - 9, num_bytes - 1):
        for bit in (0, 3, 7):
            assert tensor_checksum({**whole, "a": flipped(whole["a"], byte, bit)}) != expected


@pytest.mark.parametrize(("one", "other"), [(0, 2), (0, 8192), (1, 9000), (4000, 12_345), (3, 99_999)])
def test_numbers_that_changed_places_are_seen(one, other):
    whole = tensors(numbers=100_000)
    moved = whole["a"].clone()
    moved[[one, other]] = moved[[other, one]]
    assert tensor_checksum({**whole, "a": moved}) != tensor_checksum(whole)


def test_names_shapes_and_dtypes_are_seen_and_order_and_layout_are_not():
    whole = tensors(numbers=96)
    different = [
        {**whole, "a": whole["a"].view(8, 12)},
        {**whole, "a": whole["a"].view(torch.int32)},
        {**whole, "c": whole["empty"]},
        {name: tensor for name, tensor in whole.items() if name != "empty"},
    ]
    assert len({tensor_checksum(one) for one in (whole, *different)}) == 5
    table = whole["a"].view(2, 3, 4, 4)
    same = {"b": whole["b"], "t": table.contiguous(memory_format=torch.channels_last)}
    assert tensor_checksum(same) == tensor_checksum({"t": table, "b": whole["b"]})


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_of_a_larger_tensor_is_read_where_it_begins(dtype):
    for start in range(9):
        part = tensors(dtype)["a"][start:]
        assert tensor_checksum({"a": part}) == tensor_checksum({"a": part.clone()})


def test_a_moment_of_another_shape_is_refused():
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.AdamW([parameter])
    saved = {"optimizer/w/exp_avg": torch.zeros(3, 2)}
    with pytest.raises(CheckpointError, match=r"optimizer/w/exp_avg has shape \[3, 2\], and its parameter \[2, 3\]"):
        load_optimizer_tensors([("w", parameter)], optimizer, saved)
