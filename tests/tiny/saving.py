"""Write a tiny model with weights that tell inputs apart."""

import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

IMAGE_SIZE = 32


def save(
    model_class: type[PreTrainedModel], config: object, folder: str | Path, seed: int, **arguments: object
) -> None:
    """Write the model of this class and config, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config, **arguments)
        spread(model)
    model.save_pretrained(folder)


def spread(model: PreTrainedModel) -> None:
    """Move weights off their near-zero starting values, so that different inputs give clearly different outputs."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=min(0.15, parameter[0].numel() ** -0.5))
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    if any(name.endswith("running_var") for name, _ in model.named_buffers()):
        _settle_batch_norm(model)


@torch.no_grad()
def _settle_batch_norm(model: PreTrainedModel) -> None:
    """Give batch norms the statistics of coloured noise, as training would; otherwise biases drown the picture."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    colours = 2 * torch.randn(64, 3, 1, 1)
    model.train()(pixel_values=colours + 0.5 * torch.randn(64, 3, IMAGE_SIZE, IMAGE_SIZE))
    for norm in norms:
        norm.momentum = 0.1


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def with_unreadable_token(model: str | Path, folder: str | Path, *, special: bool = False) -> int:
    """A copy of a tiny model with an added token `<soft_N>` beyond its embedding table; returns N, the table's rows."""
    shutil.copytree(model, folder)
    num_rows = int(json.loads(Path(folder, "config.json").read_text())["vocab_size"])
    file = Path(folder, "tokenizer.json")
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for number in range(len(vocabulary), num_rows):
        vocabulary[f"unused{number}"] = number
    token = {"id": num_rows, "content": f"<soft_{num_rows}>", "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append(token | {"normalized": False, "special": special})
    file.write_text(json.dumps(tokenizer))
    return num_rows
