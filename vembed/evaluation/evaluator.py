"""Measures a model on retrieval sets: encode, score, rank, average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vembed.evaluation.metrics import PerQuery, measure_queries
from vembed.evaluation.protocols import (
    MODEL_EMBEDDINGS,
    EvaluationProtocol,
    ProtocolChoice,
    ProtocolRule,
    model_protocols,
    query_part_label,
)
from vembed.evaluation.ranks import RelevantRanks, join_ranks, rank_relevant
from vembed.evaluation.relevance import RetrievalSet
from vembed.evaluation.settings import EvaluationSettings
from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.model.modeling import VisualRetrievalModel
from vembed.retrieval.encode import Encoding, ItemEncoder
from vembed.retrieval.index import Hits, best_documents, score_strips
from vembed.scoring import Scorer, get_scorer
from vembed.types import Embeddings, Ragged


@dataclass(frozen=True)
class SetResult:
    """Figures of one set. per_query: metric -> [queries]; their means are `metrics`. hits: the best documents.

    first_ranks: int64 [queries], the rank of each query's first relevant document. protocol: how these figures were
    measured. protocol_results: the figures by every protocol, this one's among them. num_truncated: distinct texts that
    are longer than the model reads, where they were counted.
    """

    name: str
    per_query: Mapping[str, PerQuery]
    hits: Hits
    first_ranks: NDArray[np.int64]
    protocol: EvaluationProtocol = MODEL_EMBEDDINGS
    protocol_results: tuple["ProtocolResult", ...] = ()
    num_truncated: int = 0

    @property
    def measured_on(self) -> str:
        """The vectors that were compared, in words."""
        return (
            self.protocol.description
            if len(self.protocol_results) <= 1
            else f"{query_part_label(self.protocol)}: {self.protocol.description}"
        )

    @property
    def chosen(self) -> "ProtocolResult":
        """The one of `protocol_results` that these figures are."""
        return next(result for result in self.protocol_results if result.protocol == self.protocol)

    @property
    def metrics(self) -> dict[str, float]:
        """Metric -> mean over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}


@dataclass(frozen=True)
class ProtocolResult:
    """Metric -> mean over the queries, by one protocol. holds_query_images: queries' pictures stand in the set."""

    protocol: EvaluationProtocol
    metrics: Mapping[str, float]
    holds_query_images: bool

    @property
    def gallery(self) -> str:
        """The gallery in words, with the query's own picture or without; "" where sets hold none."""
        if not self.holds_query_images:
            return ""
        return "without the query's picture" if self.protocol.without_query_image else "with the query's picture"


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one model on every set, in the order of the sets."""

    sets: tuple[SetResult, ...]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Set -> metric -> value."""
        return {result.name: result.metrics for result in self.sets}

    def mean(self, metric: str) -> float:
        """A metric averaged over the sets."""
        return float(np.mean([result.metrics[metric] for result in self.sets]))


@dataclass(frozen=True)
class Evaluator:
    """Measures models on `sets`. `num_hits` results per query are kept, for a gallery."""

    sets: Sequence[RetrievalSet]
    settings: EvaluationSettings
    num_hits: int = 5

    def measure(self, model: VisualRetrievalModel, rule: ProtocolRule = model_protocols) -> EvaluationResult:
        """Figures of the model, each set by the protocols of the rule. Items that several sets share are encoded once.

        Raises DataError for an image that cannot be read, ModelError for a set whose mode the model cannot take.
        """
        for retrieval_set in self.sets:
            model.check_mode(retrieval_set.mode)
        encoders = _Encoders(model, self.settings.eval_batch_size)
        measured = [self._measure_set(one, encoders, rule(model, one, self.settings)) for one in self.sets]
        return EvaluationResult(tuple(measured))

    def _measure_set(self, retrieval_set: RetrievalSet, encoders: "_Encoders", protocols: ProtocolChoice) -> SetResult:
        """The result of the best candidate, by the metric that also chooses checkpoints."""
        results = [
            self._measure_protocol(retrieval_set, encoders, one)
            for one in (*protocols.candidates, *protocols.also_shown)
        ]
        candidates = results[: len(protocols.candidates)]
        best = candidates[0]
        if len(candidates) > 1:
            best = max(candidates, key=lambda result: result.metrics[self.settings.best_metric])
        return replace(
            best,
            protocol_results=tuple(
                ProtocolResult(one.protocol, one.metrics, retrieval_set.holds_query_images) for one in results
            ),
        )

    def _measure_protocol(
        self, retrieval_set: RetrievalSet, encoders: "_Encoders", protocol: EvaluationProtocol
    ) -> SetResult:
        encoder = encoders.get(protocol)
        keys = retrieval_set.query_keys.tolist() if protocol.part == "whole" else None
        queries = encoder.encode([protocol.query(item) for item in retrieval_set.queries], side="query", keys=keys)
        documents = encoder.encode(retrieval_set.documents, side="document", keys=retrieval_set.document_keys.tolist())
        result = measure_set(
            retrieval_set.without_query_images() if protocol.without_query_image else retrieval_set,
            queries,
            documents,
            scorer=encoders.scorer(protocol),
            cut_offs=self.settings.eval_k,
            num_hits=self.num_hits,
        )
        return replace(result, protocol=protocol)


def measure_set(
    retrieval_set: RetrievalSet,
    queries: Embeddings | Ragged,
    documents: Embeddings | Ragged,
    *,
    scorer: Scorer,
    cut_offs: Sequence[int],
    num_hits: int,
) -> SetResult:
    """Figures of a set's embeddings, rows in the order of its queries and documents."""
    ranks: list[RelevantRanks] = []
    hits: list[Hits] = []
    for start, scores in score_strips(queries, documents, scorer, excluded=retrieval_set.excluded):
        ranks.append(rank_relevant(scores, take_rows(retrieval_set.relevant, start, start + len(scores))))
        hits.append(best_documents(scores, num_hits))
    every_rank = join_ranks(ranks)
    return SetResult(
        name=retrieval_set.name,
        per_query=measure_queries(every_rank, cut_offs),
        hits=Hits(torch.cat([hit.documents for hit in hits]), torch.cat([hit.scores for hit in hits])),
        first_ranks=every_rank.values[every_rank.positions == 1],
    )


@dataclass
class _Encoders:
    """Encoders of one model, one per kind of vectors, shared by all sets so that no item is encoded twice."""

    model: VisualRetrievalModel
    batch_size: int
    encoders: dict[str, ItemEncoder] = field(default_factory=dict)

    def get(self, protocol: EvaluationProtocol) -> ItemEncoder:
        """The encoder of these vectors; towers differ in width, so each of them has its own."""
        encoding = Encoding(batch_size=self.batch_size, features=protocol.features)
        vectors = protocol.description if protocol.features == "tower" else protocol.features
        return self.encoders.setdefault(vectors, ItemEncoder(self.model, encoding))

    def scorer(self, protocol: EvaluationProtocol) -> Scorer:
        """The model's own scorer; for towers' own features cosine, or token by token."""
        spec = self.model.spec
        return get_scorer("cosine" if protocol.features == "tower" else spec.similarity, spec.scoring)
