"""Where sentence-transformers has the same loss: the same embeddings give the same value and the same gradients."""

import pytest
import torch
from sentence_transformers.multi_vector_encoder.losses import (
    MultiVectorMarginMSELoss,
    MultiVectorMultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.losses import (
    BatchAllTripletLoss,
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    BatchHardTripletLossDistanceFunction,
    BatchSemiHardTripletLoss,
    ContrastiveLoss,
    CoSENTLoss,
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn

from tests.targets import make_targets, ragged
from vembed.losses.factory import LossFactory
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.scoring import cosine, dot, maxsim
from vembed.types import Embeddings, Ragged, Targets

ROWS, SCALE = 6, 20.0


def vectors(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (ROWS, 5), generator=generator, dtype=torch.float64).requires_grad_()


def ours(
    loss_type, queries, documents, targets, *, scorer=cosine, scale=SCALE, shared=None, mask=None, **options
) -> Tensor:
    section = LossRegistry.get(loss_type).settings.model_validate(options)
    settings = LossSettings.model_validate({"loss_type": loss_type, **(shared or {})})
    objective = LossFactory.create(settings, section, scorer=scorer, dim=documents.shape[-1])
    sides = Embeddings(queries), Embeddings(documents, mask)
    return objective(*sides, targets, logit_scale=torch.tensor([scale], dtype=torch.float64).log())


def assert_same(value: Tensor, expected: Tensor, leaves: list[Tensor], rtol: float = 1e-10) -> None:
    assert value.item() == pytest.approx(expected.item(), rel=rtol)
    pairs = zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True)
    for gradient, other in pairs:
        assert torch.allclose(gradient, other, rtol=100 * rtol, atol=rtol / 10)


def pairs(num_negatives: int = 0) -> Targets:
    """A positive per query, then the first negative of each, then the second of each."""
    negatives = [[ROWS * (1 + number) + row for number in range(num_negatives)] for row in range(ROWS)]
    return make_targets([[row] for row in range(ROWS)], ROWS * (1 + num_negatives), negatives=negatives)


@pytest.mark.parametrize("num_negatives", [0, 2])
@pytest.mark.parametrize("mode", ["in_batch_negatives", "hard_negatives", "all_negatives"])
def test_hardness(mode, num_negatives):
    if mode == "hard_negatives" and num_negatives == 0:
        mode = "all_negatives"
    columns = [vectors(seed) for seed in range(2 + num_negatives)]
    theirs = MultipleNegativesRankingLoss(model=None, scale=SCALE, hardness_mode=mode, hardness_strength=4.0)
    names = {"in_batch_negatives": "in_batch", "hard_negatives": "explicit", "all_negatives": "all"}
    value = ours(
        "infonce",
        columns[0],
        torch.cat(columns[1:]),
        pairs(num_negatives),
        loss_direction="query_to_document",
        hardness_strength=4.0,
        hardness_on=names[mode],
    )
    assert_same(value, theirs.compute_loss_from_embeddings(columns, None), columns)


@pytest.mark.parametrize(
    ("directions", "options"),
    [
        (("query_to_doc", "query_to_query"), {"loss_direction": "query_to_document", "query_to_query": True}),
        (
            ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"),
            {"joint_denominator": True, "query_to_query": True, "document_to_document": True},
        ),
    ],
)
def test_joint_directions(directions, options):
    """With doc_to_query, theirs counts the positive a second time, in its column; ours and GTE's formula do not."""
    columns = [vectors(1), vectors(2)]
    theirs = MultipleNegativesRankingLoss(model=None, scale=SCALE, directions=directions)
    expected = theirs.compute_loss_from_embeddings(columns, None)
    if "doc_to_query" in directions:
        expected = once(columns)
    assert_same(ours("infonce", *columns, pairs(), **options), expected, columns)


def once(columns: list[Tensor]) -> Tensor:
    """GTE's loss with each positive once in its denominator."""
    q, d = (nn.functional.normalize(side, dim=1) for side in columns)
    own = torch.eye(ROWS, dtype=torch.bool)
    across, queries, documents = SCALE * q @ d.T, SCALE * q @ q.T, SCALE * d @ d.T
    rest = [across.T, queries, documents]
    everything = torch.cat([across, *(part.masked_fill(own, -torch.inf) for part in rest)], dim=1)
    return (everything.logsumexp(dim=1) - across.diagonal()).mean()


def test_cosent():
    columns, grades = [vectors(1), vectors(2)], torch.tensor([0.1, 0.9, 0.4, 0.4, 1.0, 0.0])
    expected = CoSENTLoss(model=None, scale=SCALE).compute_loss_from_embeddings(columns, grades)
    assert_same(ours("cosent", *columns, with_scores(pairs(), [[float(grade)] for grade in grades])), expected, columns)


def test_contrastive():
    columns, labels = [vectors(1), vectors(2)], torch.tensor([0.0, 1, 1, 0, 0, 1])
    expected = ContrastiveLoss(model=None, margin=0.8).compute_loss_from_embeddings(columns, labels)
    targets = with_scores(pairs(), [[float(label)] for label in labels])
    assert_same(ours("contrastive", *columns, targets, margin=0.8), expected, columns)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_margin_mse(num_negatives):
    columns = [vectors(seed) for seed in range(2 + num_negatives)]
    grades = torch.randn(ROWS, 1 + num_negatives, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = MarginMSELoss(model=None).compute_loss_from_embeddings(columns, grades)
    targets = with_scores(pairs(num_negatives), grades.tolist())
    value = ours("margin_mse", columns[0], torch.cat(columns[1:]), targets, scorer=dot, scale=1.0)
    assert_same(value, expected, columns)


def test_explicit_triplets():
    columns = [vectors(seed) for seed in range(3)]
    theirs = TripletLoss(model=None, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=0.4)
    value = ours("triplet", columns[0], torch.cat(columns[1:]), pairs(1), triplet_mining="explicit", margin=0.4)
    assert_same(value, theirs.compute_loss_from_embeddings(columns, None), columns)


@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        (BatchAllTripletLoss, {"triplet_mining": "batch_all", "margin": 0.6}),
        (BatchHardTripletLoss, {"triplet_mining": "batch_hard", "margin": 0.6}),
        (BatchHardSoftMarginTripletLoss, {"triplet_mining": "batch_hard", "soft_margin": True}),
        (BatchSemiHardTripletLoss, {"triplet_mining": "batch_semi_hard", "margin": 0.6}),
    ],
)
def test_mined_triplets(theirs, options):
    """One set of labelled rows against itself: a row's positives are the others of its label."""
    labels = [1, 2, 1, 3, 2, 1, 3, 2]
    rows = vectors(1, len(labels), 5)
    targets = make_targets(
        [[other for other in range(8) if labels[other] == label and other != row] for row, label in enumerate(labels)],
        8,
        query_hashes=range(1, 9),
        document_hashes=range(1, 9),
    )
    margin = {"margin": options["margin"]} if "margin" in options else {}
    loss = theirs(model=None, distance_metric=BatchHardTripletLossDistanceFunction.cosine_distance, **margin)
    expected = loss.compute_loss_from_embeddings([rows], torch.tensor(labels))
    assert_same(ours("triplet", rows, rows, targets, **options), expected, [rows])


def test_matryoshka():
    columns, widths, weights = [vectors(1), vectors(2)], (5, 3, 2), (1.0, 0.5, 0.25)
    loss = MultipleNegativesRankingLoss(model=None, scale=SCALE)
    expected = sum(
        weight
        * loss.compute_loss_from_embeddings([nn.functional.normalize(side[:, :width], dim=1) for side in columns], None)
        for width, weight in zip(widths, weights, strict=True)
    )
    shared = {"mrl_dims": widths, "mrl_weights": weights, "use_mrl": True}
    value = ours("infonce", *columns, pairs(), shared=shared, loss_direction="query_to_document")
    assert_same(value, expected, columns)


class TokenModel(nn.Module):
    """Gives the token embeddings that it is given: what their multi-vector losses ask of a model."""

    def forward(self, features, task=None):
        return {"token_embeddings": features["vectors"], "attention_mask": features["attention_mask"]}

    def preprocess(self, *_args, **_kwargs):
        raise AssertionError("nothing is tokenised here")


def token_features(number_of_columns: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    columns = [
        nn.functional.normalize(vectors(seed, ROWS, 4, 5).detach(), dim=2).requires_grad_()
        for seed in range(number_of_columns)
    ]
    masks = [
        torch.ones(ROWS, 4, dtype=torch.long),
        *[torch.arange(4) < torch.arange(ROWS)[:, None] % 4 + 1 for _ in columns[1:]],
    ]
    return columns, [
        {"vectors": column, "attention_mask": mask.long()} for column, mask in zip(columns, masks, strict=True)
    ]


def test_late_interaction():
    columns, features = token_features(2)
    expected = MultiVectorMultipleNegativesRankingLoss(TokenModel(), scale=2.0)(features)
    mask = features[1]["attention_mask"].bool()
    value = ours("colbert", *columns, pairs(), scorer=maxsim, scale=2.0, mask=mask, loss_direction="query_to_document")
    assert_same(value, expected, columns, rtol=1e-6)  # theirs scores in float32


def test_margin_mse_of_late_interaction():
    columns, features = token_features(3)
    grades = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = MultiVectorMarginMSELoss(TokenModel())(features, grades)
    mask = torch.cat([feature["attention_mask"] for feature in features[1:]]).bool()
    targets = with_scores(pairs(1), grades.tolist())
    value = ours("margin_mse", columns[0], torch.cat(columns[1:]), targets, scorer=maxsim, scale=1.0, mask=mask)
    assert_same(value, expected, columns, rtol=1e-6)  # theirs scores in float32


def with_scores(targets: Targets, grades: list[list[float]]) -> Targets:
    """The targets with these scores for each row's positive, then its negatives."""
    positives, negatives = (
        [part.tolist() for part in side.values.split(side.counts.tolist())]
        for side in (targets.positives, targets.negatives)
    )
    scored = ragged([positive + negative for positive, negative in zip(positives, negatives, strict=True)])
    values = torch.tensor([grade for row in grades for grade in row], dtype=torch.float64)
    return Targets(
        targets.query_groups,
        targets.query_hashes,
        targets.document_groups,
        targets.document_hashes,
        targets.positives,
        targets.negatives,
        scored=scored,
        scores=Ragged(values, scored.counts),
    )
