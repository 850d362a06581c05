"""Batches of random embeddings and keys, and every loss with the options that change what it does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tests.targets import ragged, random_targets
from vembed.grad_cache.cachex.tree_utils import map_tensors
from vembed.losses.factory import LossFactory
from vembed.losses.objective import Objective
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.scoring import Scorer, cosine, dot, maxsim
from vembed.types import Embeddings, Ragged, Sides, Targets

DIM = 5
CLASSES = range(10)  # more than random targets name
CLASS_LOSSES = ("arcface", "proxy_anchor")

# loss_type, options, settings that all losses share
CASES: dict[str, tuple[str, Mapping[str, object], Mapping[str, object]]] = {
    "infonce": ("infonce", {}, {}),
    "infonce query_to_document": ("infonce", {"loss_direction": "query_to_document"}, {}),
    "infonce document_to_query": ("infonce", {"loss_direction": "document_to_query"}, {}),
    "infonce own sides": ("infonce", {"query_to_query": True, "document_to_document": True}, {}),
    "infonce joint": ("infonce", {"joint_denominator": True, "query_to_query": True}, {}),
    "infonce private": ("infonce", {"private_negatives": True}, {}),
    "infonce smoothed": ("infonce", {"label_smoothing": 0.2, "document_to_document": True}, {}),
    "infonce hard": ("infonce", {"hardness_strength": 3.0, "hardness_on": "in_batch"}, {}),
    "infonce explicit hard": ("infonce", {"hardness_strength": 3.0, "hardness_on": "explicit"}, {}),
    "infonce margin": ("infonce", {"false_negative_margin": 0.1}, {}),
    "infonce margins": ("infonce", {"false_negative_relative_margin": 0.2, "false_negative_margin": 0.05}, {}),
    "supcon": ("supcon", {}, {}),
    "supcon query_to_document": ("supcon", {"loss_direction": "query_to_document"}, {}),
    "supcon document_to_query": ("supcon", {"loss_direction": "document_to_query"}, {}),
    "sigmoid": ("sigmoid", {}, {}),
    "sigmoid private": ("sigmoid", {"private_negatives": True}, {}),
    "hard_negative": ("hard_negative", {"num_hardest": 2}, {}),
    "in_batch_hard": ("in_batch_hard", {"num_hardest": 3}, {}),
    "triplet hard": ("triplet", {}, {}),
    "triplet soft": ("triplet", {"soft_margin": True}, {}),
    "triplet all": ("triplet", {"triplet_mining": "batch_all", "margin": 0.5}, {}),
    "triplet all soft": ("triplet", {"triplet_mining": "batch_all", "soft_margin": True}, {}),
    "triplet semi-hard": ("triplet", {"triplet_mining": "batch_semi_hard"}, {}),
    "triplet explicit": ("triplet", {"triplet_mining": "explicit"}, {}),
    "cosent": ("cosent", {}, {}),
    "cosent in_batch": ("cosent", {"cosent_pairs": "in_batch"}, {}),
    "contrastive": ("contrastive", {}, {}),
    "margin_mse": ("margin_mse", {}, {}),
    "preference": ("preference", {}, {}),
    "preference smoothed": ("preference", {"preference_beta": 0.7, "preference_label_smoothing": 0.2}, {}),
    "preference infonce": ("preference", {"preference_infonce_weight": 0.5}, {}),
    "preference mrl": ("preference", {}, {"use_mrl": True, "mrl_dims": (5, 2), "mrl_weights": (1.0, 0.5)}),
    "distillation": ("distillation", {}, {}),  # of the scores in the data; from a teacher: test_distillation.py
    "colbert": ("colbert", {}, {}),
    "colbert mean": ("colbert", {"maxsim_reduction": "mean", "query_to_query": True}, {}),
    "arcface": ("arcface", {"class_scale": 8.0}, {}),
    "arcface sub-centres": ("arcface", {"class_scale": 5.0, "sub_centres": 3, "arcface_margin": 1.2}, {}),
    "arcface mrl": ("arcface", {"class_scale": 4.0}, {"use_mrl": True, "mrl_dims": (5, 2), "mrl_weights": (1.0, 0.5)}),
    "proxy_anchor": ("proxy_anchor", {"class_scale": 6.0}, {}),
    "proxy_anchor mrl": ("proxy_anchor", {}, {"use_mrl": True, "mrl_dims": (5, 3), "mrl_weights": (1.0, 2.0)}),
    "mrl": ("mrl", {}, {"mrl_dims": (2, 5, 3), "mrl_weights": (0.5, 1.0, 0.25)}),
}


@dataclass(frozen=True)
class RandomBatch:
    """Both sides as leaves in float64, targets full of equal keys, a log scale and a bias."""

    queries: Embeddings
    documents: Embeddings
    targets: Targets
    logit_scale: Tensor
    logit_bias: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.queries.vectors, self.documents.vectors, self.logit_scale, self.logit_bias]

    def to(self, dtype: torch.dtype) -> "RandomBatch":
        """The same numbers in another dtype, as leaves of their own; the scale is at least float32."""
        scale_dtype = dtype if dtype.itemsize >= 4 else torch.float32
        queries, documents = (
            replace(side, vectors=side.vectors.detach().to(dtype).requires_grad_())
            for side in (self.queries, self.documents)
        )
        numbers = (part.detach().to(scale_dtype).requires_grad_() for part in (self.logit_scale, self.logit_bias))
        targets = replace(self.targets, reference=None)
        if self.targets.reference is not None:
            targets = replace(targets, reference=map_tensors(partial(_cast, dtype=dtype), self.targets.reference))
        return RandomBatch(queries, documents, targets, *numbers)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def make_objective(name: str, scorer: Scorer, dim: int = DIM, dtype: torch.dtype = torch.float64) -> Objective:
    """With the weights of all CLASSES in this dtype, if the loss learns some."""
    loss_type, options, shared = CASES[name]
    section = LossRegistry.get(loss_type).settings.model_validate(dict(options))
    settings = LossSettings.model_validate({"loss_type": loss_type, **shared})
    objective = LossFactory.create(settings, section, scorer=scorer, dim=dim, classes=CLASSES)
    if objective.classes is not None:
        objective.classes.to(dtype)
    return objective


def has_meaning(name: str, scorer: Scorer) -> bool:
    """Whether the loss is defined for this scorer."""
    allowed = {"colbert": [maxsim], "contrastive": [cosine]} | {name: [cosine, dot] for name in CLASS_LOSSES}
    return CASES[name][0] not in allowed or scorer in allowed[CASES[name][0]]


def objective_for(name: str, batch: RandomBatch, scorer: Scorer) -> Objective:
    return make_objective(name, scorer, batch.queries.vectors.shape[-1], batch.logit_scale.dtype)


def evaluate(name: str, batch: RandomBatch, scorer: Scorer) -> Tensor:
    return value_of(objective_for(name, batch, scorer), batch)


def value_of(objective: Objective, batch: RandomBatch) -> Tensor:
    return objective(
        batch.queries, batch.documents, batch.targets, logit_scale=batch.logit_scale, logit_bias=batch.logit_bias
    )


def value_and_gradients(
    name: str, batch: RandomBatch, scorer: Scorer, *, refuse_nan: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients with respect to both sides, scale, bias, and the weights of classes if it has some.

    refuse_nan: raise RuntimeError for a NaN anywhere in the backward pass.
    """
    objective = objective_for(name, batch, scorer)
    leaves = batch.leaves if objective.classes is None else [*batch.leaves, objective.classes.weight]
    value = value_of(objective, batch)
    if not value.requires_grad:  # a batch without anything to compare
        return value, [torch.zeros_like(leaf) for leaf in leaves]
    # Not while the loss is computed: there it would only note where each operation stands, slowly.
    with torch.autograd.set_detect_anomaly(refuse_nan):
        return value, list(torch.autograd.grad(value, leaves, materialize_grads=True))


def random_batch(seed: int, *, tokens: int | None = None, num_keys: int = 6) -> RandomBatch:
    """A batch of up to 7 queries and 8 documents; of up to `tokens` tokens each, if given."""
    targets = graded(random_targets(seed, num_keys=num_keys), seed)
    generator = torch.Generator().manual_seed(seed)

    def side(rows: int) -> Embeddings:
        shape = (rows, DIM) if tokens is None else (rows, tokens, DIM)
        vectors = torch.randn(shape, generator=generator, dtype=torch.float64)
        mask = None
        if tokens is not None:
            lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
            mask = torch.arange(tokens) < lengths
        return Embeddings(vectors.requires_grad_(), mask)

    queries, documents = side(len(targets.query_hashes)), side(len(targets.document_hashes))
    targets = with_reference(targets, queries, documents, seed)
    logit_scale = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    return RandomBatch(
        queries, documents, targets, logit_scale, torch.tensor([-0.7], dtype=torch.float64).requires_grad_()
    )


def graded(targets: Targets, seed: int) -> Targets:
    """The targets with a score of 0 or 1 for every named document, and a few ignored contents."""
    generator = torch.Generator().manual_seed(seed + 77)
    positives, negatives = (part.values.split(part.counts.tolist()) for part in (targets.positives, targets.negatives))
    columns = [
        positive.tolist() + [column for column in negative.tolist() if column not in positive.tolist()]
        for positive, negative in zip(positives, negatives, strict=True)
    ]
    scored = ragged(columns)
    grades = torch.randint(0, 2, (len(scored.values),), generator=generator).double()
    ignored = [[seed % 5] if row % 3 == 2 else [] for row in range(len(columns))]
    return replace(targets, ignored=ragged(ignored), scored=scored, scores=Ragged(grades, scored.counts))


def with_reference(targets: Targets, queries: Embeddings, documents: Embeddings, seed: int) -> Targets:
    """The targets with what another model might make of these sides, which have the same tokens there."""
    generator = torch.Generator().manual_seed(seed + 55)
    sides = (
        replace(side, vectors=torch.randn(side.vectors.shape, generator=generator, dtype=torch.float64))
        for side in (queries, documents)
    )
    return replace(targets, reference=Sides(*sides))


def is_cut(name: str) -> bool:
    """Whether a case is Matryoshka."""
    return "mrl_dims" in CASES[name][2]
