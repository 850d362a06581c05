"""Every loss with every kind of model and data: through the gradient cache, in strips, the gradients are those of the
plain step on the full matrix; or the combination is refused and says why."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.gradients import assert_gradients_equal, take_gradients
from tests.targets import make_targets, ragged
from vembed.errors import ConfigError
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses import contrasts, strips
from vembed.losses.factory import LossFactory
from vembed.losses.objective import Teacher
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import dot, get_scorer
from vembed.training.dpo import Reference
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.types import Batch, Embeddings, Item, Ragged, Sides, Targets

LOSSES = LossRegistry.list()
KINDS = ("single", "multi-vector")
NEGATIVES, GROUPS, MATRYOSHKA = ("none", "ragged"), (False, True), (False, True)
TEACHERS = ("none", "kl", "cosine")  # what is learned from its embeddings
CELLS = list(itertools.product(LOSSES, KINDS, NEGATIVES, GROUPS, MATRYOSHKA, TEACHERS))
CLASS_LOSSES = ("arcface", "proxy_anchor")
# What only rows can lack; test_scores.py and test_records.py show that those without are refused.
NEEDS_OF_ROWS = {
    "explicit negatives": lambda needs: needs.negatives,
    "a class of every row": lambda needs: needs.groups,
}
WORDS = "red blue green small large round square bright dark picture sign shape".split()
NUM_QUERIES, NUM_DOCUMENTS, CHUNK, DIM = 5, 8, 3, 24  # DIM: of the single vectors, and of the teacher


def quick_and_slow(losses: list[str]) -> list[Any]:  # Any: pytest's own type of a parameter
    """The quick tests have a loss of each kind: contrasts, tokens, pairs, scores, classes, preferences."""
    quick = {"infonce", "colbert", "triplet", "margin_mse", "arcface", "preference"}
    assert quick <= set(losses)
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in losses]


def why_refused(loss_type: str, kind: str, negatives: str, teacher: str, *, groups: bool) -> str | None:
    """What the combination lacks."""
    if loss_type == "colbert" and kind == "single":
        return "needs one vector per token"
    if loss_type in CLASS_LOSSES and kind == "multi-vector":
        return "one vector per row with one per class"
    if loss_type == "contrastive" and kind == "multi-vector":
        return "is defined on cosine distance"
    if teacher == "cosine" and kind == "multi-vector":
        return "compares one vector per row with another, and the model has one per token"
    if loss_type in CLASS_LOSSES and not groups:
        return "a class of every row"
    return "explicit negatives" if loss_type in ("margin_mse", "preference") and negatives == "none" else None


@pytest.fixture(scope="module")
def models(bert_folder):
    colbert = ModelSettings(encoder_mode="colbert", projection_dim=16)
    pairs = {
        "single": VisualRetrievalModel.from_pretrained(bert_folder),
        "multi-vector": VisualRetrievalModel.from_pretrained(bert_folder, colbert),
    }
    for pair in pairs.values():
        pair.model.double()
        pair.model.add_bias(0.1)
    return pairs


def make_batch(pair: VisualRetrievalModel, negatives: str, *, groups: bool) -> Batch:
    """Two positives for a query, a query that stands twice, a score for all that rows name, and a teacher of all."""
    against = [[5, 6], [], [7], [], []] if negatives == "ragged" else [[]] * NUM_QUERIES
    labels = [-1, 3, -1, 3, -1] if groups else [-1] * NUM_QUERIES
    positives = [[0], [1, 4], [2], [3], [0]]
    targets = make_targets(
        positives,
        NUM_DOCUMENTS,
        negatives=against,
        query_groups=labels,
        document_groups=[-1, 3, -1, 3, -1, -1, -1, -1] if groups else [-1] * NUM_DOCUMENTS,
        query_hashes=[1, 2, 3, 4, 1],
    )
    prepare = pair.processor.prepare
    queries, documents = (
        [
            Item(text=" ".join(WORDS[(start + step * row) % 12] for step in range(1, 3 + row % 3)))
            for row in range(count)
        ]
        for start, count in ((0, NUM_QUERIES), (5, NUM_DOCUMENTS))
    )
    return Batch(prepare(queries, "query"), prepare(documents, "document"), scored(targets, positives, against))


def scored(targets: Targets, positives: list[list[int]], negatives: list[list[int]]) -> Targets:
    columns = ragged([positive + negative for positive, negative in zip(positives, negatives, strict=True)])
    scores = torch.arange(len(columns.values), dtype=torch.float64) % 2
    generator = torch.Generator().manual_seed(1)
    sides = [torch.randn(rows, DIM, generator=generator, dtype=torch.float64) for rows in (NUM_QUERIES, NUM_DOCUMENTS)]
    return replace(
        targets, scored=columns, scores=Ragged(scores, columns.counts), teacher=Sides(*map(Embeddings, sides))
    )


def another_start(pair: VisualRetrievalModel) -> Reference:
    """A reference whose weights are not quite the model's, as after some steps."""
    reference, draw = Reference(pair.model), torch.Generator().manual_seed(0)
    for parameter in reference.model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return reference


def gradients_of(pair: VisualRetrievalModel, batch: Batch, settings: LossSettings, chunk_size: int | None):
    objective = LossFactory.create(
        settings,
        scorer=get_scorer(pair.spec.similarity, pair.spec.scoring),
        dim=pair.model.dim,
        normalize=pair.spec.normalize,
        classes=(3, 7, 8, 9),
        teacher=Teacher(dot, 0.5, DIM) if settings.use_distillation else None,
    )
    if objective.classes is not None:
        objective.classes.double()
    cache = GradCacheSettings(
        use_gradient_cache=chunk_size is not None, gradient_cache_chunk_size=chunk_size or 1, gradient_cache_retain=0.5
    )
    reference = another_start(pair) if LossRegistry.get(settings.loss_type).reads_reference else None
    loss = GradientCacheTrainer(pair.model, pair.processor, objective, cache, reference=reference).step(batch).loss
    parameters = dict(pair.model.named_parameters())
    if objective.classes is not None:
        parameters["classes"] = objective.classes.weight
    return loss, take_gradients(parameters.items())


@pytest.mark.parametrize("loss_type", quick_and_slow(LOSSES))
def test_cached_in_strips_equals_plain_on_the_full_matrix(loss_type, models, monkeypatch):
    kinds = Counter()
    for _, kind, negatives, groups, use_mrl, teacher in (cell for cell in CELLS if cell[0] == loss_type):
        reason, pair = why_refused(loss_type, kind, negatives, teacher, groups=groups), models[kind]
        distillation = {"use_distillation": True, "distillation_type": teacher} if teacher != "none" else {}
        widths = (pair.model.dim, 6) if use_mrl else ()
        settings = LossSettings.model_validate(
            {"loss_type": loss_type, "use_mrl": use_mrl, "mrl_dims": widths, **distillation}
        )
        batch = make_batch(pair, negatives, groups=groups)
        kinds["refused" if reason else "equal"] += 1
        if reason in NEEDS_OF_ROWS:
            loss = LossRegistry.get(loss_type)
            assert NEEDS_OF_ROWS[reason](loss.needs(loss.settings()))  # rows without are refused as they are read
            continue
        if reason:
            with pytest.raises(ConfigError, match=reason):
                gradients_of(pair, batch, settings, None)
            continue
        expected_loss, expected = gradients_of(pair, batch, settings, None)
        with monkeypatch.context() as patch:
            patch.setattr(strips, "DENSE_SCORES", -1)
            for module in (strips, contrasts):
                patch.setattr(module, "strip_rows", lambda _view: 2)
            loss, gradients = gradients_of(pair, batch, settings, CHUNK)
        assert loss == pytest.approx(expected_loss, rel=1e-10)
        assert loss > 0
        assert_gradients_equal(gradients, expected)
    assert sum(kinds.values()) == len(CELLS) // len(LOSSES)
    num_refused = {
        "colbert": 32,
        "contrastive": 24,
        "margin_mse": 28,
        "preference": 28,
        "arcface": 36,
        "proxy_anchor": 36,
    }
    assert kinds["refused"] == num_refused.get(loss_type, 8)


def test_the_matrix_holds_every_combination():
    assert len(CELLS) == 15 * 2 * 2 * 2 * 2 * 3 == 720
    refused = [cell for cell in CELLS if why_refused(*cell[:3], cell[5], groups=cell[3])]
    assert len(refused) == 32 + 24 + 28 + 28 + 36 + 36 + 9 * 8
