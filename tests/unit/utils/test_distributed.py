import random

import numpy as np
import pytest
import torch

from vembed.errors import UsageError
from vembed.training.rng import preserve_rng
from vembed.utils.distributed import is_main_process, rank, require_one_process, seed_everything, world_size


def test_one_process_is_the_main_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)
    require_one_process()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not is_main_process()
    with pytest.raises(UsageError, match="WORLD_SIZE is 4"):
        require_one_process()


def test_a_seed_fixes_every_generator():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with preserve_rng():
        seed_everything(7)
        first = draw()
        assert draw() != first
        seed_everything(7)
        assert draw() == first
        seed_everything(2**40 + 7)
        assert draw() != first
