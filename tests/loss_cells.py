"""Every loss with every kind of model and data: batches, settings and steps, for tests that compare their gradients."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tests.gradients import take_gradients
from tests.targets import make_targets, ragged, select_targets
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.objective import Teacher
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.model.learning.scale import add_bias
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import dot, get_scorer
from vembed.training.dpo import Reference
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.types import Batch, Embeddings, Item, Ragged, Sides, Targets
from vembed.utils.distributed import average_gradients
from vembed.utils.settings import Section

LOSSES = LossRegistry.list()
KINDS = ("single", "multi-vector")
NEGATIVES, GROUPS, MATRYOSHKA = ("none", "ragged"), (False, True), (False, True)
TEACHERS = ("none", "kl", "cosine")  # what is learned from its embeddings
CELLS = list(itertools.product(LOSSES, KINDS, NEGATIVES, GROUPS, MATRYOSHKA, TEACHERS))
CLASS_LOSSES = ("arcface", "proxy_anchor")
WORDS = "red blue green small large round square bright dark picture sign shape".split()
NUM_QUERIES, NUM_DOCUMENTS, CHUNK, DIM = 5, 8, 3, 24  # DIM: of the single vectors, and of the teacher


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


def open_models(bert_folder: str) -> dict[str, VisualRetrievalModel]:
    """A model of each kind, in float64, with a bias."""
    colbert = ModelSettings(encoder_mode="colbert", projection_dim=16)
    pairs = {
        "single": VisualRetrievalModel.from_pretrained(bert_folder),
        "multi-vector": VisualRetrievalModel.from_pretrained(bert_folder, colbert),
    }
    for pair in pairs.values():
        pair.model.double()
        add_bias(pair.model, 0.1)
    return pairs


def make_batch(pair: VisualRetrievalModel, negatives: str, *, groups: bool) -> Batch:
    """Two positives for a query, a query that stands twice, a score for all that rows name, and a teacher of all."""
    return part_of_batch(pair, all_targets(negatives, groups=groups), range(NUM_QUERIES), range(NUM_DOCUMENTS))


def part_of_batch(
    pair: VisualRetrievalModel, targets: Targets, queries: Sequence[int], documents: Sequence[int]
) -> Batch:
    """The batch of these queries and documents alone; the queries name no others. targets: of the whole batch."""
    prepare = pair.processor.prepare
    return Batch(
        prepare([text(0, row) for row in queries], "query"),
        prepare([text(NUM_QUERIES, row) for row in documents], "document"),
        select_targets(targets, queries, documents),
        tuple(f"row {row}" for row in queries),
    )


def text(start: int, row: int) -> Item:
    return Item(text=" ".join(WORDS[(start + step * row) % 12] for step in range(1, 3 + row % 3)))


def all_targets(negatives: str, *, groups: bool) -> Targets:
    """Of the whole batch; negatives "ragged": of some rows, one of them of two."""
    against = [[5, 6], [], [7], [5], []] if negatives == "ragged" else [[]] * NUM_QUERIES
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
    return scored(targets, positives, against)


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


def settings_of(pair: VisualRetrievalModel, loss_type: str, teacher: str, *, use_mrl: bool) -> LossSettings:
    """The settings of a cell."""
    distillation = {"use_distillation": True, "distillation_type": teacher} if teacher != "none" else {}
    widths = (pair.model.dim, 6) if use_mrl else ()
    return LossSettings.model_validate({"loss_type": loss_type, "use_mrl": use_mrl, "mrl_dims": widths, **distillation})


def gradients_of(
    pair: VisualRetrievalModel,
    batch: Batch,
    settings: LossSettings,
    chunk_size: int | None,
    options: Section | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """The loss and all gradients of a step in chunks (None: plain), the mean over ranks if there are several."""
    loss_type = LossRegistry.get(settings.loss_type)
    taught = settings.use_distillation or (options is not None and bool(loss_type.reads_teacher(options)))
    objective = LossFactory.create(
        settings,
        options,
        scorer=get_scorer(pair.spec.similarity, pair.spec.scoring),
        dim=pair.model.dim,
        normalize=pair.spec.normalize,
        classes=(3, 7, 8, 9),
        teacher=Teacher(dot, 0.5, DIM) if taught else None,
    )
    if objective.classes is not None:
        objective.classes.double()
    cache = GradCacheSettings(
        use_gradient_cache=chunk_size is not None, gradient_cache_chunk_size=chunk_size or 1, gradient_cache_retain=0.5
    )
    reference = another_start(pair) if loss_type.reads_reference else None
    loss = GradientCacheTrainer(pair.model, pair.processor, objective, cache, reference=reference).step(batch).loss
    parameters = dict(pair.model.named_parameters())
    if objective.classes is not None:
        parameters["classes"] = objective.classes.weight
    average_gradients(parameters.values())
    return loss, take_gradients(parameters.items())
