"""Every loss over several ranks: real processes, each with some rows, have the loss and the gradient of one process
with all of them, whatever chunks each cuts its own into."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.gradients import assert_gradients_equal
from tests.loss_cells import (
    CELLS,
    LOSSES,
    NUM_DOCUMENTS,
    NUM_QUERIES,
    all_targets,
    gradients_of,
    open_models,
    part_of_batch,
    settings_of,
    text,
    why_refused,
)
from tests.ranks import Results, run_ranks
from tests.targets import make_targets, ragged, rows_of, select_targets
from vembed.data.collators.default import Collator
from vembed.errors import DataError, NotFiniteError
from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses import contrasts, strips
from vembed.losses.factory import LossFactory
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.scoring import get_scorer
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.loop import Engine, steps_of_epoch
from vembed.training.plan import Plan
from vembed.training.precision import Precision
from vembed.training.schedule import Schedule
from vembed.training.state import TrainState
from vembed.types import Batch, Embeddings, LoadedExample, Targets
from vembed.utils.distributed import group_rank, group_size
from vembed.utils.settings import Section

pytestmark = pytest.mark.slow

# Rows of each rank. Rows 0 and 4, which ranks share, have one positive, and ask the same; so do groups meet (1 and 3),
# and an explicit negative (0 and 3).
QUERIES = {2: [(0, 1, 2), (3, 4)], 3: [(0,), (1, 2), (3, 4)]}
# What the matrix leaves at its default, with documents that rows ignore: loss, kind, negatives, teacher, options.
OPTIONS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    ("infonce", "single", "ragged", "none", {"private_negatives": True, "query_to_query": True}),
    ("infonce", "single", "ragged", "none", {"document_to_document": True, "label_smoothing": 0.1}),
    ("infonce", "multi-vector", "ragged", "none", {"joint_denominator": True, "hardness_strength": 2.0}),
    ("infonce", "single", "ragged", "none", {"false_negative_margin": 0.1, "loss_direction": "query_to_document"}),
    ("infonce", "single", "none", "none", {"false_negative_teacher_margin": 0.5}),
    ("colbert", "multi-vector", "ragged", "none", {"maxsim_reduction": "mean", "private_negatives": True}),
    ("sigmoid", "single", "ragged", "none", {"private_negatives": True}),
    ("hard_negative", "multi-vector", "ragged", "none", {"num_hardest": 2}),
    ("triplet", "single", "ragged", "none", {"triplet_mining": "batch_all", "margin": 0.5}),
    ("triplet", "single", "none", "none", {"triplet_mining": "batch_semi_hard", "soft_margin": True}),
    ("triplet", "multi-vector", "ragged", "none", {"triplet_mining": "explicit", "margin": 9.0}),
    ("cosent", "single", "ragged", "none", {"cosent_pairs": "in_batch"}),
    ("preference", "single", "ragged", "none", {"preference_infonce_weight": 1.0}),
    ("arcface", "single", "ragged", "none", {"sub_centres": 2}),
    ("infonce", "multi-vector", "ragged", "mse", {}),
    ("infonce", "single", "ragged", "margin_mse", {}),
]


@dataclass(frozen=True)
class Cell:
    """A loss, its settings, and the targets of the whole batch."""

    kind: str
    settings: LossSettings
    targets: Targets
    options: Section | None = None


def all_cells(models: dict[str, VisualRetrievalModel]) -> Iterator[Cell]:
    """The cells of test_loss_matrix.py that have a meaning, and OPTIONS."""
    for loss_type, kind, negatives, groups, use_mrl, teacher in CELLS:
        if why_refused(loss_type, kind, negatives, teacher, groups=groups) is None:
            settings = settings_of(models[kind], loss_type, teacher, use_mrl=use_mrl)
            yield Cell(kind, settings, all_targets(negatives, groups=groups))
    for loss_type, kind, negatives, teacher, chosen in OPTIONS:
        targets = replace(all_targets(negatives, groups=True), ignored=ragged([[2001], [], [], [2000, 7], []]))
        options = LossRegistry.get(loss_type).settings.model_validate(chosen)
        yield Cell(kind, settings_of(models[kind], loss_type, teacher, use_mrl=False), targets, options)


def rank_batch(pair: VisualRetrievalModel, targets: Targets, rank: int, num_ranks: int) -> Batch:
    """A rank's rows, with the documents that they name and a share of those that none does."""
    named = [
        positives + negatives
        for positives, negatives in zip(*map(rows_of, (targets.positives, targets.negatives)), strict=True)
    ]
    queries = QUERIES[num_ranks][rank]
    nobodys = set(range(NUM_DOCUMENTS)).difference(*named)
    documents = {column for row in queries for column in named[row]} | {n for n in nobodys if n % num_ranks == rank}
    return part_of_batch(pair, targets, queries, sorted(documents))


def whole_gradients(bert: str, every: int) -> list[tuple[float, dict[str, Tensor]]]:
    """The loss and gradient of the plain step on the full matrix in one process, of every so many cells."""
    models = open_models(bert)
    return [
        gradients_of(
            models[cell.kind],
            part_of_batch(models[cell.kind], cell.targets, range(NUM_QUERIES), range(NUM_DOCUMENTS)),
            cell.settings,
            None,
            cell.options,
        )
        for cell in list(all_cells(models))[::every]
    ]


def compare_cells(rank: int, bert: str, expected_file: str, every: str) -> Results:
    """This rank's gradients against those of one process; in turn this rank's step is plain and the others' cached."""
    expected = torch.load(expected_file, weights_only=True)
    models, num_ranks = open_models(bert), group_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "DENSE_SCORES", -1)
        for module in (strips, contrasts):
            patch.setattr(module, "strip_rows", lambda _view: 2)
        for number, cell in enumerate(list(all_cells(models))[:: int(every)]):
            pair = models[cell.kind]
            batch = rank_batch(pair, cell.targets, rank, num_ranks)
            chunk_size = 2 if (number + rank) % 2 else None
            loss, gradients = gradients_of(pair, batch, cell.settings, chunk_size, cell.options)
            expected_loss, whole = expected[number]
            assert loss == pytest.approx(expected_loss, rel=1e-10), cell
            assert loss > 0
            assert_gradients_equal(gradients, whole)
    refuse_what_is_wrong(rank, models["single"])
    return {"cells": torch.tensor(number + 1)} | train(bert)


def run_cells(folder: Path, bert: str, *, every: int, num_ranks: int) -> list[Results]:
    torch.save(whole_gradients(bert, every), folder / "expected.pt")
    return run_ranks(compare_cells, folder, str(bert), str(folder / "expected.pt"), str(every), num_ranks=num_ranks)


def test_two_ranks_have_the_gradient_of_one_process_with_every_loss(bert_folder, tmp_path):
    results = run_cells(tmp_path, bert_folder, every=1, num_ranks=2)
    num_cells = 720 - 256 + len(OPTIONS)
    assert [int(result["cells"]) for result in results] == [num_cells] * 2
    assert {cell[0] for cell in CELLS} == set(LOSSES)
    assert_trained_alike(results, train(str(bert_folder)))


def test_three_ranks_have_it_too(bert_folder, tmp_path):
    every = 11  # no multiple of what the cells of a loss are made of, so that all kinds are met
    results = run_cells(tmp_path, bert_folder, every=every, num_ranks=3)
    assert [int(result["cells"]) for result in results] == [-(-(464 + len(OPTIONS)) // every)] * 3
    assert_trained_alike(results, train(str(bert_folder)))


def refuse_what_is_wrong(rank: int, pair: VisualRetrievalModel) -> None:
    """Where a step stops, all ranks stop alike and have no gradient; rank 1 has what is wrong."""
    scorer = get_scorer(pair.spec.similarity, pair.spec.scoring)
    objective = LossFactory.create(LossSettings(), scorer=scorer)
    cache = GradCacheSettings(gradient_cache_chunk_size=1 + rank)
    trainer = GradientCacheTrainer(pair.model, pair.processor, objective, cache)
    batch = rank_batch(pair, all_targets("none", groups=False), rank, group_size())
    nothing = part_of_batch(pair, make_targets([[0]], 1), [0], [0])
    nothing = replace(
        nothing, queries=take_rows(nothing.queries, 0, 0), targets=select_targets(nothing.targets, [], [0])
    )
    with pytest.raises(DataError, match="the batch of rank 1 has 0 queries and 1 documents"):
        trainer.step(nothing if rank == 1 else batch)

    def broken(module: torch.nn.Module, _inputs: object, output: Embeddings) -> Embeddings:
        return replace(output, vectors=output.vectors * torch.nan)

    hook = pair.model.register_forward_hook(broken) if rank == 1 else None
    rows = "the embeddings of row 3, row 4 are not" if group_size() == 2 else "the embeddings of row 1, row 2 are not"
    with pytest.raises(
        NotFiniteError, match=rows if rank == 1 else "embeddings of rank 1 are not, which names the rows"
    ):
        trainer.step(batch)
    if hook is not None:
        hook.remove()
    scale = pair.model.logit_scale.detach().clone()
    with torch.no_grad():
        pair.model.logit_scale.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="the model's weights are not finite either, such as logit_scale"):
        trainer.step(batch)
    with torch.no_grad():
        pair.model.logit_scale.copy_(scale)
    assert all(parameter.grad is None for parameter in pair.model.parameters())


class Batches:
    """Three batches of six rows, or a rank's share of them, as a loader gives them. Ranks share a document."""

    SHARES: ClassVar = {1: [(0, 6)], 2: [(0, 4), (4, 6)], 3: [(0, 2), (2, 3), (3, 6)]}

    def __init__(self, pair: VisualRetrievalModel) -> None:
        start, stop = self.SHARES[group_size()][group_rank()]
        load = pair.processor.load
        self._batches = [
            Collator()(
                [
                    LoadedExample(load(text(number, row)), (load(text(5, row % 5)),), (load(text(7, row % 4 + 1)),))
                    for row in range(6)
                ][start:stop]
            )
            for number in range(3)
        ]

    def epoch(self, _epoch: int, _state: object) -> Iterator[tuple[Batch, None]]:
        return ((batch, None) for batch in self._batches)


def without_dropout(pair: VisualRetrievalModel) -> VisualRetrievalModel:
    """Each rank would draw its own."""
    for module in pair.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return pair


def train(bert: str) -> Results:
    """The weights after an epoch of two steps, the second of a single batch; with a scaler, after a third in which the
    last rank alone has a gradient that is infinite."""
    results: Results = {}
    for name, scaler in (("plain", None), ("scaled", torch.amp.GradScaler("cpu", init_scale=16.0))):
        pair = without_dropout(VisualRetrievalModel.from_pretrained(bert))
        pair.model.double()
        cache = GradCacheSettings(gradient_cache_chunk_size=2 + group_rank())
        trainer = GradientCacheTrainer(pair.model, pair.processor, LossFactory.create(LossSettings()), cache)
        group = {"params": list(pair.model.parameters()), "initial_lr": 1e-2, "part": "text"}
        engine = Engine(
            pair.model,
            trainer,
            torch.optim.AdamW([group], eps=1e-3),
            Schedule("constant", 3, 0),
            Precision(torch.device("cpu"), "no", nullcontext, scaler),
            max_grad_norm=0.5,
        )
        batches, plan, state = Batches(pair), Plan(6, 2, 2, 3, 1, None, None), TrainState()
        records = list(steps_of_epoch(engine, batches, plan, state))
        if scaler is not None and group_rank() == group_size() - 1:
            pair.model.logit_scale.register_hook(lambda gradient: gradient * torch.inf)
        if scaler is not None:
            records.append(next(steps_of_epoch(engine, batches, plan, state)))
        results |= {f"{name}/{key}": value.detach() for key, value in pair.model.named_parameters()}
        results[f"{name}/losses"] = torch.tensor([record.loss for record in records])
        results[f"{name}/skipped"] = torch.tensor([record.skipped for record in records])
    return results


def assert_trained_alike(ranks: list[Results], expected: Results) -> None:
    """All ranks have the weights of one process, and leave out the step that one of them could not use."""
    assert expected["plain/skipped"].tolist() == [False, False]
    assert expected["scaled/skipped"].tolist() == [False, False, True]
    assert float(expected["scaled/losses"][2]) < float(expected["plain/losses"][0])
    for results in ranks:
        for name, value in expected.items():
            torch.testing.assert_close(results[name], value, rtol=1e-7, atol=1e-9, msg=name)
