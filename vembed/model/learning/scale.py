"""Initial values of the logit scale and of the bias of a model's scores."""

import math

import torch
from torch import nn

from vembed.model.base import BaseEmbeddingModel

NEW_TEMPERATURE = 0.1  # of SigLIP before training, with a bias of -10: https://arxiv.org/abs/2303.15343


def set_temperature(model: BaseEmbeddingModel, temperature: float) -> None:
    """Set the logit scale to log(1 / temperature)."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / temperature))


def add_bias(model: BaseEmbeddingModel, temperature: float | None) -> None:
    """Add the bias of scores to a model without one: -1 / temperature, so that pairs start as negatives (SigLIP).

    temperature: of the scores from now on; None: SigLIP's before training, 0.1, or the family's where that is higher.
    Does nothing to a model with a bias.
    """
    if model.logit_bias is None:
        start = max(NEW_TEMPERATURE, model.start_temperature)
        set_temperature(model, start if temperature is None else temperature)
        model.logit_bias = nn.Parameter(-model.logit_scale.detach().exp())
