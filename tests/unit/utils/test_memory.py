import sys

import pytest
import torch

from vembed.utils import memory
from vembed.utils.memory import (
    MIB,
    free_memory_bytes,
    peak_memory_mib,
    reset_peak_memory,
    used_memory_bytes,
)

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_the_peak_is_of_what_came_after_the_reset():
    torch.ones(60 * MIB, dtype=torch.uint8).sum()
    reset_peak_memory(CPU)
    before = peak_memory_mib(CPU)
    assert before - used_memory_bytes(CPU) / MIB < 20
    block = torch.ones(90 * MIB, dtype=torch.uint8)
    assert 60 < used_memory_bytes(CPU) / MIB - before < 110
    del block
    assert 60 < peak_memory_mib(CPU) - before < 110


def test_what_is_free_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    most, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", most)
    monkeypatch.setattr(memory, "_CGROUP_USED", used)
    free = free_memory_bytes(CPU)
    assert 50 * MIB < free < 2**50
    used.write_text("1000\n")
    for limit, expected in (("6000\n", 5000), ("900\n", 0)):
        most.write_text(limit)
        assert free_memory_bytes(CPU) == expected
    most.write_text("max\n")
    assert free_memory_bytes(CPU) > 50 * MIB
