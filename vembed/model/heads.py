"""Parameters outside the backbones (heads, fusion, logit scale and bias): state dict, loading, new fusions."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vembed.errors import CheckpointError, ModelError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.folder.find import HEADS_FILE, SPEC_FILE, read_table
from vembed.model.vectors.fusion_registry import SUM, FusionRegistry
from vembed.utils.untrusted import library_errors


def heads_state(model: BaseEmbeddingModel) -> dict[str, Tensor]:
    """State dict of the parameters outside the backbones: heads, fusion, logit scale and bias, on the CPU."""
    names = [name for name, _ in model.named_parameters() if model.part_of(name) in ("heads", "scale")]
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone().contiguous() for name in names}


def load_heads_state(model: BaseEmbeddingModel, state: Mapping[str, Tensor], source: Path) -> None:
    """Load a state dict of `heads_state`. Raises CheckpointError if names or shapes differ."""
    if "logit_bias" in state and model.logit_bias is None and tuple(state["logit_bias"].shape) == (1,):
        model.logit_bias = nn.Parameter(torch.zeros_like(state["logit_bias"]))
    expected = heads_state(model)
    wrong = [name for name in expected.keys() | state.keys() if _shape(expected, name) != _shape(state, name)]
    if wrong:
        raise CheckpointError(f"{source} does not fit this model: {', '.join(sorted(wrong))} differ")
    model.load_state_dict(dict(state), strict=False)
    model.has_own_scale = True
    model.has_new_heads = False
    model.has_new_fusion = False


def set_fusion(model: BaseEmbeddingModel, name: str, seed: int) -> None:
    """Give the model a new fusion of text and images, with weights drawn from `seed`; `sum` removes any."""
    model.spec = model.spec.model_copy(update={"fusion": name})
    model.fusion = None
    if name != SUM:
        with torch.random.fork_rng(devices=[]):
            model.fusion = FusionRegistry.get(name)(model.dim)
        model.fusion.initialize(torch.Generator().manual_seed(seed))
    model.has_new_fusion = model.fusion is not None


def load_heads(model: BaseEmbeddingModel, folder: Path) -> None:
    """Load heads, fusion, logit scale and bias, if the folder is a vembed checkpoint. Raises CheckpointError."""
    if not (folder / SPEC_FILE).is_file():
        return
    path = folder / HEADS_FILE
    with library_errors(CheckpointError, f"{path} is missing or broken"):
        state = load_file(path)
    load_heads_state(model, state, path)


def load_or_create_heads(model: BaseEmbeddingModel, root: Path | None, seed: int) -> None:
    """As `load_heads`, with the fusion of the folder; if the spec names another one, that is added new.

    root: the folder, None for two towers of different folders. New weights are drawn from `seed`.
    """
    wanted, saved = model.spec.fusion, _saved_fusion(root)
    if saved not in (SUM, *FusionRegistry.list()):
        raise ModelError(
            f"{root}/{SPEC_FILE}: the fusion of the model is {saved!r}, which is not known here (known:"
            f" {', '.join([SUM, *FusionRegistry.list()])}); name the module that registers it in plugins"
        )
    set_fusion(model, saved, seed)
    if root is not None:
        load_heads(model, root)
    if wanted != saved:
        set_fusion(model, wanted, seed)


def _saved_fusion(root: Path | None) -> str:
    """The fusion in a vembed checkpoint; `sum` for other folders."""
    saved = None if root is None else read_table(root / SPEC_FILE)
    return SUM if saved is None else str(saved["spec"].get("fusion", SUM))


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
