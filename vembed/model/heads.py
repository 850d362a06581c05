"""What of a model no backbone holds: heads, fusion, logit scale and bias; as tensors, from a folder, or new."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vembed.errors import CheckpointError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.folder.find import HEADS_FILE, SPEC_FILE, read_json
from vembed.model.vectors.fusion_registry import SUM, FusionRegistry


def heads_state(model: BaseEmbeddingModel) -> dict[str, Tensor]:
    """The parameters that no backbone holds: logit scale, bias and heads, as plain tensors."""
    names = [name for name, _ in model.named_parameters() if model.part_of(name) in ("heads", "scale")]
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone().contiguous() for name in names}


def load_heads_state(model: BaseEmbeddingModel, state: Mapping[str, Tensor], source: Path) -> None:
    """Restore what `heads_state` gave. Raises CheckpointError when names or shapes do not fit."""
    if "logit_bias" in state and model.logit_bias is None:
        model.logit_bias = nn.Parameter(torch.zeros_like(state["logit_bias"]))
    own = heads_state(model)
    wrong = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
    if wrong:
        raise CheckpointError(f"{source} does not fit this model: {', '.join(sorted(wrong))} differ")
    model.load_state_dict(dict(state), strict=False)
    model.has_own_scale = True
    model.has_new_heads = False
    model.has_new_fusion = False


def fuse(model: BaseEmbeddingModel, name: str, seed: int) -> None:
    """Join text and images of a row by the fusion of this name, new and drawn from `seed`; a sum has no weights."""
    model.spec = model.spec.model_copy(update={"fusion": name})
    model.fusion = None
    if name != SUM:
        with torch.random.fork_rng(devices=[]):
            model.fusion = FusionRegistry.get(name)(model.dim)
        model.fusion.initialize(torch.Generator().manual_seed(seed))
    model.has_new_fusion = model.fusion is not None


def read_heads(model: BaseEmbeddingModel, folder: Path) -> None:
    """Restore logit scale, bias, heads and fusion, if the folder is a checkpoint of ours. Raises CheckpointError."""
    if not (folder / SPEC_FILE).is_file():
        return
    path = folder / HEADS_FILE
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or broken: {error}") from error
    load_heads_state(model, state, path)


def open_heads(model: BaseEmbeddingModel, root: Path | None, seed: int) -> None:
    """As `read_heads`, for a model just loaded: with the fusion that the folder's weights are of, or, where the model's
    spec names one that the folder has not, that fusion anew, drawn from `seed`."""
    wanted, learned = model.spec.fusion, _learned_fusion(root)
    fuse(model, learned, seed)
    if root is not None:
        read_heads(model, root)
    if wanted != learned:
        fuse(model, wanted, seed)


def _learned_fusion(root: Path | None) -> str:
    """The fusion whose weights a checkpoint of ours holds; a plain sum where there is none."""
    saved = None if root is None else read_json(root / SPEC_FILE)
    return SUM if saved is None else str(saved["spec"].get("fusion", SUM))


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
