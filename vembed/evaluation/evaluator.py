"""Measures a model on retrieval sets: encode, score, rank, average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vembed.evaluation.metrics import PerQuery, measure_queries
from vembed.evaluation.protocols import PLAIN, Bases, Basis, Rule, as_it_is, part_words
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

    first_ranks: int64 [queries], where each query's first relevant document stands. basis: which vectors were compared.
    rows: the figures of every basis that was measured, this one's among them. num_truncated: distinct texts that are
    longer than the model reads, where they were counted.
    """

    name: str
    per_query: Mapping[str, PerQuery]
    hits: Hits
    first_ranks: NDArray[np.int64]
    basis: Basis = PLAIN
    rows: tuple["BasisRow", ...] = ()
    num_truncated: int = 0

    @property
    def measured_on(self) -> str:
        """Which vectors were compared, in words."""
        return self.basis.words if len(self.rows) <= 1 else f"{part_words(self.basis)}: {self.basis.words}"

    @property
    def row(self) -> "BasisRow":
        """The one of `rows` that these figures are."""
        return next(row for row in self.rows if row.basis == self.basis)

    @property
    def metrics(self) -> dict[str, float]:
        """Metric -> mean over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}


@dataclass(frozen=True)
class BasisRow:
    """The figures of one basis: metric -> mean over the queries. holds_query_images: whether its gallery had any."""

    basis: Basis
    metrics: Mapping[str, float]
    holds_query_images: bool

    @property
    def gallery(self) -> str:
        """Whether queries find their own pictures in the gallery, in words; "" where there are none."""
        if not self.holds_query_images:
            return ""
        return "without the query's picture" if self.basis.without_query_image else "with the query's picture"


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

    def measure(self, model: VisualRetrievalModel, rule: Rule = as_it_is) -> EvaluationResult:
        """Figures of the model, each set by the rule's vectors. Items that several sets share are encoded once.

        Raises DataError for an image that cannot be read, ModelError for a set whose mode the model cannot take.
        """
        for retrieval_set in self.sets:
            model.check_mode(retrieval_set.mode)
        encoders = _Encoders(model, self.settings.eval_batch_size)
        measured = [self._measure_set(one, encoders, rule(model, one, self.settings)) for one in self.sets]
        return EvaluationResult(tuple(measured))

    def _measure_set(self, retrieval_set: RetrievalSet, encoders: "_Encoders", bases: Bases) -> SetResult:
        """The result of the best candidate, by the metric that also chooses checkpoints."""
        results = [self._measure_basis(retrieval_set, encoders, one) for one in (*bases.candidates, *bases.beside)]
        candidates = results[: len(bases.candidates)]
        best = candidates[0]
        if len(candidates) > 1:
            best = max(candidates, key=lambda result: result.metrics[self.settings.best_metric])
        return replace(
            best, rows=tuple(BasisRow(one.basis, one.metrics, retrieval_set.holds_query_images) for one in results)
        )

    def _measure_basis(self, retrieval_set: RetrievalSet, encoders: "_Encoders", basis: Basis) -> SetResult:
        encoder = encoders.get(basis)
        keys = retrieval_set.query_keys.tolist() if basis.part == "whole" else None
        queries = encoder.encode([basis.query(item) for item in retrieval_set.queries], side="query", keys=keys)
        documents = encoder.encode(retrieval_set.documents, side="document", keys=retrieval_set.document_keys.tolist())
        result = measure_set(
            retrieval_set.without_query_images() if basis.without_query_image else retrieval_set,
            queries,
            documents,
            scorer=encoders.scorer(basis),
            cut_offs=self.settings.eval_k,
            num_hits=self.num_hits,
        )
        return replace(result, basis=basis)


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
    """One encoder per kind of vectors, shared by the sets of one measurement."""

    model: VisualRetrievalModel
    batch_size: int
    encoders: dict[str, ItemEncoder] = field(default_factory=dict)

    def get(self, basis: Basis) -> ItemEncoder:
        """The encoder of these vectors; towers differ in width, so each of them has its own."""
        encoding = Encoding(batch_size=self.batch_size, features=basis.features)
        vectors = basis.words if basis.features == "tower" else basis.features
        return self.encoders.setdefault(vectors, ItemEncoder(self.model, encoding))

    def scorer(self, basis: Basis) -> Scorer:
        """How vectors are compared: as the model says; towers' own features by cosine, or token by token."""
        spec = self.model.spec
        return get_scorer("cosine" if basis.features == "tower" else spec.similarity, spec.scoring)
