"""The work of `vembed doctor`: say what this machine has and whether a config holds, or check a model's gradients.

vembed doctor
vembed doctor cfg.yaml
vembed doctor --grad-check cfg.yaml
"""

import importlib.util
from collections.abc import Iterator

import torch

from vembed.config import Config
from vembed.trainer import Trainer
from vembed.training.precision import choose_precision
from vembed.training.run.compatibility import versions
from vembed.training.trials.grad_check import GradCheck
from vembed.utils.memory import GIB, free_memory_bytes

# What an extra brings, by a module that says whether it is there.
_EXTRAS = {
    "tracking": "tensorboard",
    "lightning": "pytorch_lightning",
    "export": "sentence_transformers",
    "bench": "sentence_transformers",
    "quantization": "bitsandbytes",
}
_WIDTH = 20


def facts(config: Config | None) -> str:
    """Versions, device and memory, and which extras are there; the device is that of the config, which holds."""
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in _facts(config))


def grad_check(config: Config, num_rows: int) -> GradCheck:
    """Plain against cached gradients of the config's model, objective and data, on a few rows."""
    return Trainer.from_config(config).grad_check(num_rows)


def _facts(config: Config | None) -> Iterator[tuple[str, str]]:
    yield from versions().items()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config is not None:
        precision = choose_precision(config.training)
        device = precision.device
        yield "config", f"holds; mixed precision: {precision.mixed_precision}"
    yield "device", str(device)
    yield "free memory", f"{free_memory_bytes(device) / GIB:.1f} GiB"
    yield "threads", str(torch.get_num_threads())
    for extra, module in _EXTRAS.items():
        missing = f"not there: pip install 'vembed-factory[{extra}]'"
        yield f"extra {extra}", "there" if importlib.util.find_spec(module) else missing
