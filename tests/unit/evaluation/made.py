"""Retrieval sets and results made from vectors, for tests that need no model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vembed.evaluation.comparison import Comparison, compare
from vembed.evaluation.evaluator import EvaluationResult, ProtocolResult, SetResult, measure_set
from vembed.evaluation.protocols import MODEL_EMBEDDINGS, EvaluationProtocol
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
        query_images=Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(num_queries, dtype=torch.int64)),
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


def make_composed() -> Comparison:
    """A set of composed queries: of the base two rows, the second of which counts, of the tuned model two as well."""
    one = make_set(40, name="m2i", mode="m2i")
    image = EvaluationProtocol("tower", "the pretrained image tower's own features", "image")
    base = _with_rows(make_result([one], 3.0).sets[0], replace(image, without_query_image=True), image)
    tuned = _with_rows(
        make_result([one], 0.3).sets[0], MODEL_EMBEDDINGS, replace(MODEL_EMBEDDINGS, without_query_image=True)
    )
    measured = {"base": EvaluationResult((base,)), "tuned": EvaluationResult((tuned,))}
    return compare([one], measured, samples=50)


def _with_rows(result: SetResult, protocol: EvaluationProtocol, other: EvaluationProtocol) -> SetResult:
    """The result as `protocol`, beside another that found nothing, with the query's picture first."""
    rows = [
        ProtocolResult(protocol, result.metrics, True),
        ProtocolResult(other, dict.fromkeys(result.metrics, 0.0), True),
    ]
    rows.sort(key=lambda row: row.protocol.without_query_image)
    return replace(result, protocol=protocol, protocol_results=tuple(rows))
