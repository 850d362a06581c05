import random

import numpy as np
import torch
from safetensors.torch import load, save

from vembed.training.rng import capture_rng, preserve_rng, restore_rng


def draw():
    return [random.random(), random.gauss(0, 1), np.random.randn(), torch.randn(()).item(), np.random.rand()]


def test_generators_go_on_from_where_they_were_captured():
    with preserve_rng():
        draw()  # one half of a pair of normal deviates of Python and of NumPy is pending now
        states = load(save(capture_rng()))
        expected = draw() + draw()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        restore_rng(states)
        assert draw() + draw() == expected


def test_a_block_leaves_the_generators_unmoved():
    with preserve_rng():
        states = capture_rng()
        expected = draw()
        restore_rng(states)
        with preserve_rng():
            draw()
        assert draw() == expected
