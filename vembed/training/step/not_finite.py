"""LossCheck: refuses a loss that is not finite, naming the rows, chunks or ranks whose embeddings are not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vembed.errors import NotFiniteError
from vembed.grad_cache.cachex.tree_utils import concat_rows, take_rows
from vembed.model.base import BaseEmbeddingModel
from vembed.training.step.chunking import SidePartition
from vembed.training.step.ranks import JoinedBatch
from vembed.types import Batch, Embeddings, Sides, Targets

MAX_NAMED = 8


@dataclass(frozen=True)
class LossCheck:
    """Refuses a loss that is not finite.

    batch: this rank's; partitions: its two sides in chunks; joined: the batches of all ranks as one.
    """

    model: BaseEmbeddingModel
    batch: Batch
    partitions: tuple[SidePartition, SidePartition]
    joined: JoinedBatch

    def __call__(self, loss: Tensor, own: Sides, gathered: Sides) -> None:
        """Raise NotFiniteError if the loss is not finite. own: this rank's embeddings; gathered: those of all ranks."""
        if not math.isfinite(loss.item()):
            why = self._explain_own_rows(own) or self._explain_other_ranks(gathered)
            raise NotFiniteError(f"the loss is not finite{why}; {self._advice()}")

    def _explain_own_rows(self, own: Sides) -> str | None:
        """The rows and chunks of this rank whose embeddings are not finite, in words; None if all are finite."""
        bad_queries, bad_documents = _bad_rows(own.queries), _bad_rows(own.documents)
        if not bad_queries.any() and not bad_documents.any():
            return None
        bad = bad_queries | _rows_naming(self.batch.targets, bad_documents)
        named = [origin for row, origin in enumerate(self.batch.origins) if bad[row]]
        queries, documents = self.partitions
        chunks = [*_bad_chunks("queries", bad_queries, queries), *_bad_chunks("documents", bad_documents, documents)]
        where = f" ({', '.join(chunks)})" if any(len(side.rows) > 1 for side in self.partitions) else ""
        return f": the embeddings of {name_rows(named) or 'some rows'} are not{where}"

    def _explain_other_ranks(self, gathered: Sides) -> str:
        """The ranks whose embeddings are not finite, in words, or that all embeddings are finite."""
        ranks = self.joined.ranks_of(_bad_rows(gathered.queries), _bad_rows(gathered.documents))
        if not ranks:
            return " though all embeddings are (temperature or bias out of range?)"
        where = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        return f": embeddings of {where} are not, which names the rows"

    def _advice(self) -> str:
        """The remedy, in words."""
        named = self.model.named_parameters()
        broken = [name for name, parameter in named if not parameter.isfinite().all()]
        if broken:
            return f"the model's weights are not finite either, such as {broken[0]}; start from files that are whole"
        return "lower the learning rate, or set mixed_precision: no"


def name_rows(origins: Sequence[str]) -> str:
    """The origins of rows, the first few of them, in words.

    >>> name_rows(["train.jsonl:2", "train.jsonl:5"])
    'train.jsonl:2, train.jsonl:5'
    >>> name_rows([f"{row}" for row in range(11)])
    '0, 1, 2, 3, 4, 5, 6, 7 and 3 more'
    """
    more = f" and {len(origins) - MAX_NAMED} more" if len(origins) > MAX_NAMED else ""
    return f"{', '.join(origins[:MAX_NAMED])}{more}"


def _bad_chunks(side: str, bad: Tensor, partition: SidePartition) -> list[str]:
    """The chunks of a side with bad rows (bool [rows]), in words: `["chunk 2 of 3 of the queries"]`, or none."""
    numbers = partition.chunks_with(bad)
    words = "chunk" if len(numbers) == 1 else "chunks"
    return [f"{words} {', '.join(map(str, numbers))} of {len(partition.rows)} of the {side}"] if numbers else []


def _bad_rows(embeddings: Embeddings) -> Tensor:
    """Bool [rows], on the host: True where a vector is not finite (padding does not count)."""
    bad = ~embeddings.vectors.isfinite().all(dim=-1)  # [rows] or [rows, tokens]
    if embeddings.mask is not None:
        bad &= embeddings.mask
    return bad.flatten(1).any(dim=1).cpu() if bad.ndim > 1 else bad.cpu()  # [rows]


def _rows_naming(targets: Targets, documents: Tensor) -> Tensor:
    """Bool [queries]: the rows that name one of the `documents` (bool [documents]) as positive or negative."""
    rows = range(len(targets.query_hashes))
    own = [
        concat_rows([take_rows(side, row, row + 1).values for side in (targets.positives, targets.negatives)])
        for row in rows
    ]
    return torch.tensor([bool(documents[columns].any()) for columns in own])
