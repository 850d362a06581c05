"""A training loop of one's own around a transformers model, on batches that memory does not limit.

    pip install "vembed-factory[demo]"
    python examples/own_loop.py [--folder output/own_loop] [--batch_size 256] [--chunk_size 32] [--max_steps 2]

all-MiniLM-L6-v2 learns to find the names of emoji by their keywords. Prints the loss as it goes, and how often the name
is the first of those that training never saw, before and after.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from vembed.demo.files import prepare
from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.grad_cache.cachex.training import train_step
from vembed.grad_cache.loss import SimpleContrastiveLoss

Pairs = list[tuple[str, str]]


class TextEncoder(torch.nn.Module):
    """Texts to vectors of length 1: the mean over a text's tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """[rows, tokens] to [rows, dim]."""
        real = inputs["attention_mask"][:, :, None]
        states = self.model(**inputs).last_hidden_state * real
        return functional.normalize(states.sum(dim=1) / real.sum(dim=1), dim=-1)

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """What `forward` reads."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")


def read_pairs(path: Path) -> Pairs:
    """Keywords and a name of each row."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["query"], row["positive"] if isinstance(row["positive"], str) else row["positive"][0]) for row in rows]


def batches(pairs: Pairs, size: int, seed: int) -> Iterator[Pairs]:
    """Shuffled pairs, an epoch of them."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, len(order) - size + 1, size):
        yield [pairs[row] for row in order[start : start + size]]


@torch.no_grad()
def accuracy(encoder: TextEncoder, pairs: Pairs) -> float:
    """How many of 100 keywords have their own name first."""
    encoder.eval()
    queries, documents = (encoder(encoder.tokenize([pair[side] for pair in pairs])) for side in (0, 1))
    encoder.train()
    return 100 * (queries @ documents.T).argmax(dim=1).eq(torch.arange(len(pairs))).float().mean().item()


def main() -> None:
    """Prepare, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/own_loop"))
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--chunk_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max_steps", type=int)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    files = prepare(arguments.folder)
    encoder = TextEncoder(files.text_model)
    training, unseen = read_pairs(files.train["keywords_to_names"]), read_pairs(files.test["t2t"])
    before = accuracy(encoder, unseen)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-5)
    side = partial(ChunkedSide, encoder, chunk_size=arguments.chunk_size)
    steps = [batch for epoch in range(arguments.epochs) for batch in batches(training, arguments.batch_size, epoch)]
    for step, batch in enumerate(steps[: arguments.max_steps], start=1):
        queries, documents = (encoder.tokenize([pair[part] for pair in batch]) for part in (0, 1))
        loss = SimpleContrastiveLoss(scale=20.0)
        report = train_step([side(queries), side(documents)], loss, optimizer, max_grad_norm=1.0)
        print(f"step {step}: loss {report.loss:.3f}, gradient {report.grad_norm:.3f}")
    print(f"own name first: {before:.1f} % before, {accuracy(encoder, unseen):.1f} % after")


if __name__ == "__main__":
    main()
