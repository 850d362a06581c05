"""Folders of sentence-transformers, written by that library itself around a tiny text model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Module, Normalize, Pooling
from torch import nn


def sentence_folder(
    folder: str | Path,
    base: str,
    modules: Sequence[Module],
    *,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    seed: int = 0,
) -> str:
    """Save the model of the folder `base` with these modules behind it; their weights are drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules:
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
    names = {"prompts": dict(prompts or {}), "default_prompt_name": default_prompt_name}
    model = SentenceTransformer(modules=[Transformer(base), *modules], device="cpu", **names)
    model.save_pretrained(str(folder))
    return str(folder)


__all__ = ["Dense", "Dropout", "LayerNorm", "Normalize", "Pooling", "sentence_folder"]
