"""Fusions: a row's text vector and its image vector to one, where their plain sum is not enough.

"The same hat, but red" is no average of a hat and of redness. Each fusion starts as the plain sum, so that a model
loses nothing when one is added, and learns the rest. Rows of a text or of images alone never pass through one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fusion(nn.Module):
    """Base of fusions: for vectors of `dim` numbers, and equal to `text + image` once `initialize` has run."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Components of unit vectors are about dim ** -0.5; layers train best on inputs of about 1.
        self.scale = math.sqrt(dim)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the starting weights from `generator`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Unit vectors [rows, dim] twice -> [rows, dim], not normalised."""
        return text + image


class GatedFusion(Fusion):
    """2 (g text + (1 - g) image), with a gate g in (0, 1) for each of the dim numbers.

    g = sigmoid(linear([text, image])), which starts at 1/2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.gate = nn.Linear(2 * dim, dim)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Zero weights: the gate is 1/2 for any input."""
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Unit vectors [rows, dim] twice -> [rows, dim], not normalised."""
        # Inputs are not scaled: with numbers of about 1, a few steps of Adam would open or shut a gate for good.
        gate = torch.sigmoid(self.gate(torch.cat([text, image], dim=-1))).to(text.dtype)
        return 2 * (gate * text + (1 - gate) * image)


class MlpFusion(Fusion):
    """text + image + mlp([text, image, text * image]), a branch that starts at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.up = nn.Linear(3 * dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Random weights, but a zero last layer of the branch."""
        super().initialize(generator)
        nn.init.zeros_(self.down.weight)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Unit vectors [rows, dim] twice -> [rows, dim], not normalised."""
        wide_text, wide_image = self.scale * text, self.scale * image
        inside = torch.cat([wide_text, wide_image, wide_text * wide_image], dim=-1)  # [rows, 3 dim]
        branch: Tensor = self.down(functional.gelu(self.up(inside)))
        return text + image + branch.to(text.dtype) / self.scale


class AttentionFusion(Fusion):
    """One transformer block over the two vectors as tokens, with an embedding of their kind; the sum of its outputs.

    Both residual branches of the block (attention, then a feed-forward layer) start at zero.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.kinds = nn.Parameter(torch.zeros(2, dim))
        self.attention_norm = nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.attended = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)
        self.num_heads = next(heads for heads in (8, 4, 2, 1) if dim % heads == 0)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Random weights, but zero last layers of both branches."""
        super().initialize(generator)
        nn.init.normal_(self.kinds, std=0.1, generator=generator)
        nn.init.zeros_(self.attended.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Unit vectors [rows, dim] twice -> [rows, dim], not normalised."""
        tokens = self.scale * torch.stack([text, image], dim=1)  # [rows, 2, dim]
        branch: Tensor = self._attend(self.attention_norm(tokens + self.kinds))
        branch = branch + self.down(functional.gelu(self.up(self.feed_forward_norm(tokens + self.kinds + branch))))
        return text + image + branch.sum(dim=1).to(text.dtype) / self.scale

    def _attend(self, tokens: Tensor) -> Tensor:
        """[rows, 2, dim] -> [rows, 2, dim]."""
        rows, number, dim = tokens.shape
        parts = self.queries_keys_values(tokens).view(rows, number, 3, self.num_heads, dim // self.num_heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each [rows, heads, 2, dim / heads]
        heads = functional.scaled_dot_product_attention(queries, keys, values)
        attended: Tensor = self.attended(heads.transpose(1, 2).reshape(rows, number, dim))
        return attended
