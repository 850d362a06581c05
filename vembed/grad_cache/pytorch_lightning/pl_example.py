"""An encoder of texts and pictures, trained by Lightning on batches that memory does not limit.

`train` takes a data module whose batches are (queries, documents) as the encoder's processor prepares them.
`python examples/lightning_emoji.py` runs it on the emoji of `vembed demo`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional

from vembed.grad_cache.loss import DistributedContrastiveLoss
from vembed.grad_cache.pytorch_lightning.pl_gradcache import GradCacheModule
from vembed.types import Embeddings, Inputs

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainOptions:
    """Training options. `manual` optimisation does by hand what Lightning does by itself; the numbers are the same."""

    chunk_size: int = 32
    learning_rate: float = 1e-3
    temperature: float = 0.07
    epochs: int = 1
    max_steps: int = -1
    devices: int = 1
    precision: Precision = "32-true"
    manual: bool = False


class FinishingEncoder(nn.Module):
    """An encoder of `Inputs` with what finishes them: floats of pictures exist for one chunk only."""

    def __init__(self, encoder: nn.Module, finish: Callable[[Inputs], Inputs]) -> None:
        super().__init__()
        self.encoder = encoder
        self.finish = finish

    def forward(self, inputs: Inputs) -> Tensor:
        """Vectors of length 1, [rows, dim]."""
        embeddings: Embeddings = self.encoder(self.finish(inputs))
        return functional.normalize(embeddings.vectors, dim=-1)


def train(
    encoder: nn.Module,
    finish: Callable[[Inputs], Inputs],
    data: LightningDataModule,
    options: TrainOptions,
    folder: Path,
) -> Trainer:
    """Train the encoder in place, on one device or several; gives the Trainer with its metrics. Logs into `folder`."""
    module = GradCacheModule(
        FinishingEncoder(encoder, finish),
        options.chunk_size,
        DistributedContrastiveLoss(scale=1 / options.temperature),
        partial(_adamw, learning_rate=options.learning_rate),
        automatic_optimization=not options.manual,
    )
    trainer = Trainer(
        max_epochs=options.epochs,
        max_steps=options.max_steps,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        precision=options.precision,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module.train(), data)
    return trainer


def _adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate)
