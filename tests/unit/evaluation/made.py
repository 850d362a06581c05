"""Retrieval sets and results made from vectors, for tests that need no model."""

from collections.abc import Sequence

import numpy as np
import torch

from vembed.evaluation.comparison import Comparison, compare
from vembed.evaluation.evaluator import EvaluationResult, measure_set
from vembed.evaluation.relevance import RetrievalSet
from vembed.scoring import cosine
from vembed.types import Embeddings, Item, Ragged


def make_set(
    num_queries: int = 12, name: str = "t2t", mode: str = "t2t", texts: Sequence[str] | None = None
) -> RetrievalSet:
    """Query i is relevant to document i alone."""
    texts = texts or [f"text {number}" for number in range(num_queries)]
    return RetrievalSet(
        name=name,
        mode=mode,
        queries=tuple(Item(text=f"query: {text}") for text in texts),
        documents=tuple(Item(text=text) for text in texts),
        query_keys=np.arange(num_queries),
        document_keys=np.arange(num_queries) + num_queries,
        relevant=Ragged(torch.arange(num_queries), torch.ones(num_queries, dtype=torch.int64)),
        excluded=Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(num_queries, dtype=torch.int64)),
        groups=np.arange(num_queries),
        num_rows=num_queries,
    )


def make_result(sets: Sequence[RetrievalSet], noise: float, seed: int = 0) -> EvaluationResult:
    """Documents are queries plus noise: none gives perfect figures, much gives chance."""
    generator = torch.Generator().manual_seed(seed)
    results = []
    for one in sets:
        queries = torch.randn(len(one.queries), 8, generator=generator)
        documents = queries + noise * torch.randn(queries.shape, generator=generator)
        results.append(
            measure_set(one, Embeddings(queries), Embeddings(documents), scorer=cosine, cut_offs=(1, 5, 10), num_hits=5)
        )
    return EvaluationResult(tuple(results))


def make_comparison(
    sets: Sequence[RetrievalSet], base_noise: float = 3.0, tuned_noise: float = 0.5, samples: int = 200
) -> Comparison:
    """A base with much noise and a tuned model with little."""
    measured = {"base": make_result(sets, base_noise), "tuned": make_result(sets, tuned_noise)}
    return compare(sets, measured, samples=samples)
