import sys

import pytest
import torch

from vembed.utils.memory import MIB, peak_memory_mib, reset_peak_memory, used_memory_bytes

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
