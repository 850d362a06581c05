"""Towers under torch.compile: slow for the first batch of each kind, then faster; same numbers within rounding."""

import os
import shutil

import torch

from vembed.errors import ModelError
from vembed.model.base import BaseEmbeddingModel

# Dropout draws from torch's own generator, as without compiling, so that a chunk's second forward repeats the first.
_OPTIONS = {"fallback_random": True}
# Towers x (encoding, a chunk's first forward, its second) x (training, evaluation); torch's own 8 are soon used up.
_MAX_RECOMPILATIONS = 64


def compile_towers(model: BaseEmbeddingModel) -> None:
    """Compile the networks of all towers, for any number of rows and tokens; names of weights stay as they are.

    Raises ModelError when there is no compiler to do it with.
    """
    _refuse_without_compiler()
    limit = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, _MAX_RECOMPILATIONS)  # torch counts those of all models together
    for network in {id(network): network for network in model.towers().values()}.values():
        network.compile(dynamic=True, options=_OPTIONS)


def is_compiled(model: BaseEmbeddingModel) -> bool:
    """True if `compile_towers` was applied to the model."""
    return any(network._compiled_call_impl is not None for network in model.towers().values())


def _refuse_without_compiler() -> None:
    """Raise ModelError without a GPU, for which Triton compiles, or a C++ compiler, which torch calls for a CPU."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in names):
        raise ModelError(
            f"torch_compile needs a C++ compiler, and there is none here (looked for {', '.join(names)}); install one,"
            " or take it out"
        )
