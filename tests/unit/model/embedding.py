"""What a loaded model makes of items in a test, and the gradient of it."""

import torch

from tests.gradients import take_gradients


def finished(model, items):
    """The finished inputs of some documents."""
    return model.processor.finish(model.processor.prepare(items, "document"))


def embed(model, inputs):
    """Embeddings and gradients in training mode, every draw the same."""
    torch.manual_seed(0)
    vectors = model.model(inputs).vectors
    weights = torch.linspace(-1, 1, vectors.numel(), dtype=vectors.dtype).view_as(vectors)
    (vectors * weights).sum().backward()
    return vectors.detach(), take_gradients(model.model.named_parameters())
