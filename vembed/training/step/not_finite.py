"""Why a loss is not finite: the rows and chunks whose embeddings are not, or whose rank they are, and what to do."""

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

MOST_NAMED = 8


@dataclass(frozen=True)
class LossCheck:
    """Refuses a loss that is not finite. batch: this rank's, in these chunks; joined: those of all ranks as one."""

    model: BaseEmbeddingModel
    batch: Batch
    chunks: tuple[SidePartition, SidePartition]
    joined: JoinedBatch

    def __call__(self, loss: Tensor, own: Sides, every: Sides) -> None:
        """Raise NotFiniteError if the loss is not finite. own: this rank's embeddings; every: those of all ranks."""
        if not math.isfinite(loss.item()):
            why = self._among(own) or self._elsewhere(every)
            raise NotFiniteError(f"the loss is not finite{why}; {self._advice()}")

    def _among(self, own: Sides) -> str | None:
        """Which of this rank's rows and chunks have embeddings that are not finite, if any have."""
        bad_queries, bad_documents = _bad_rows(own.queries), _bad_rows(own.documents)
        if not bad_queries.any() and not bad_documents.any():
            return None
        bad = bad_queries | _rows_naming(self.batch.targets, bad_documents)
        named = [origin for row, origin in enumerate(self.batch.origins) if bad[row]]
        queries, documents = self.chunks
        chunks = [*_bad_chunks("queries", bad_queries, queries), *_bad_chunks("documents", bad_documents, documents)]
        where = f" ({', '.join(chunks)})" if any(len(side.rows) > 1 for side in self.chunks) else ""
        return f": the embeddings of {name_rows(named) or 'some rows'} are not{where}"

    def _elsewhere(self, every: Sides) -> str:
        """The same where this rank's own embeddings are finite: whose are not, or that all are."""
        ranks = self.joined.ranks_of(_bad_rows(every.queries), _bad_rows(every.documents))
        if not ranks:
            return " though all embeddings are (temperature or bias out of range?)"
        where = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        return f": embeddings of {where} are not, which names the rows"

    def _advice(self) -> str:
        """What to do about it."""
        named = self.model.named_parameters()
        broken = [name for name, parameter in named if not parameter.isfinite().all()]
        if broken:
            return f"the model's weights are not finite either, such as {broken[0]}; start from files that are whole"
        return "lower the learning rate, or set mixed_precision: no"


def name_rows(origins: Sequence[str]) -> str:
    """Where rows come from, the first few of them.

    >>> name_rows(["train.jsonl:2", "train.jsonl:5"])
    'train.jsonl:2, train.jsonl:5'
    >>> name_rows([f"{row}" for row in range(11)])
    '0, 1, 2, 3, 4, 5, 6, 7 and 3 more'
    """
    more = f" and {len(origins) - MOST_NAMED} more" if len(origins) > MOST_NAMED else ""
    return f"{', '.join(origins[:MOST_NAMED])}{more}"


def _bad_chunks(side: str, bad: Tensor, partition: SidePartition) -> list[str]:
    """The chunks of a side with bad rows (bool [rows]): `["chunk 2 of 3 of the queries"]`."""
    numbers = partition.chunks_of(bad)
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
