"""Real tiny encoders with dropout, their inputs, and a loss, for tests of gradient caching in people's own loops."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from tests.gradients import take_gradients
from tests.pictures import make_picture
from vembed.scoring import l2_normalize

WORDS = "red blue green small large round square bright dark picture sign shape".split()


class Encoder(nn.Module):
    """A transformers model in training mode and float64, and its first token's state at length 1."""

    def __init__(self, folder: str, dropout: float = 0.0) -> None:
        super().__init__()
        probabilities = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        self.model = AutoModel.from_pretrained(folder, add_pooling_layer=False, **probabilities)
        self.double().train()

    def forward(self, **inputs: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        return l2_normalize(self.model(**cast).last_hidden_state[:, 0])


def texts(folder: str, count: int, first: int = 0) -> BatchEncoding:
    """Texts of one to four words, padded to the longest."""
    lines = [" ".join(WORDS[(first + row * step) % 12] for step in range(1, 2 + row % 4)) for row in range(count)]
    return AutoTokenizer.from_pretrained(folder)(lines, padding=True, return_tensors="pt")


def pictures(count: int, first: int = 0) -> dict[str, Tensor]:
    """Pixels [pictures, 3, 32, 32] under the name that a vision model calls them."""
    arrays = [np.asarray(make_picture(first + row, (32, 32))) for row in range(count)]
    return {"pixel_values": torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2).double() / 255}


def contrast(queries: Tensor, documents: Tensor, scale: float = 10.0) -> Tensor:
    """InfoNCE; a query's documents stand beside each other, its positive first."""
    columns = torch.arange(len(queries)) * (len(documents) // len(queries))
    return nn.functional.cross_entropy(queries @ documents.T * scale, columns)


def gradients_of(*modules: nn.Module) -> dict[str, Tensor]:
    """The gradients of all modules by name, taken away from them."""
    return take_gradients(nn.ModuleList(modules).named_parameters())


def graph_gradients(loss: Tensor, *modules: nn.Module) -> dict[str, Tensor]:
    """What backward leaves in the modules."""
    loss.backward()
    return gradients_of(*modules)


def checkpoint_activations(encoder: Encoder, *, reentrant: bool) -> None:
    """Turn on gradient checkpointing."""
    model = encoder.model
    # transformers renamed the method in 5.x and warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
