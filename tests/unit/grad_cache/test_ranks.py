"""Two real processes together have the gradient of one with the whole batch, however models and chunks are cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.gradients import assert_gradients_equal, relative_difference
from tests.ranks import Results, run_ranks
from tests.unit.grad_cache.encoders import (
    Encoder,
    checkpoint_activations,
    contrast,
    gradients_of,
    graph_gradients,
    pictures,
    texts,
)
from vembed.errors import UsageError
from vembed.grad_cache import GradCache
from vembed.grad_cache.cachex.functional import ChunkedSide
from vembed.grad_cache.cachex.training import train_step
from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.grad_cache.functional import cached, cat_input_tensor, gather_input_tensor
from vembed.grad_cache.loss import DistributedContrastiveLoss, SimpleContrastiveLoss
from vembed.utils.distributed import average_gradients, gather_rows

pytestmark = pytest.mark.slow

QUERIES = {0: (0, 4), 1: (4, 7)}  # rows of each rank: unlike numbers of rows, and of chunks
SCALE = 5.0
# How a step may be put together, by the name of the check.
STEPS = """
one_two_tower kept_graphs two_models shared_synced_per_chunk reentrant_checkpointing learned_scale one_chunk
""".split()


class TwoTowers(nn.Module):
    """Texts by the one tower, pictures by the other."""

    def __init__(self, bert: str, vit: str) -> None:
        super().__init__()
        self.text, self.vision = Encoder(bert), Encoder(vit)

    def forward(self, **inputs: Tensor) -> Tensor:
        tower = self.text if "input_ids" in inputs else self.vision
        return tower(**inputs)[:, :20]


class LearnedScale(nn.Module):
    """A contrastive loss with a temperature of its own."""

    def __init__(self, kind: type[SimpleContrastiveLoss]) -> None:
        super().__init__()
        self.kind, self.log_scale = kind, nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.kind(scale=self.log_scale.exp())(x, y)


@dataclass(frozen=True)
class Setup:
    """A model and both inputs, with all rows or a rank's."""

    model: TwoTowers
    queries: dict[str, Tensor]
    documents: dict[str, Tensor]
    other_texts: dict[str, Tensor]


def setup(bert: str, vit: str, rank: int | None) -> Setup:
    whole = (texts(bert, 7), pictures(7), texts(bert, 7, first=5))
    rows = (0, 7) if rank is None else QUERIES[rank]
    return Setup(TwoTowers(bert, vit), *[take_rows(part, *rows) for part in whole])


def parallel(model: nn.Module) -> DistributedDataParallel:
    return DistributedDataParallel(model)


def named(prefix: str, gradients: Results) -> Results:
    return {f"{prefix}/{name}": gradient for name, gradient in gradients.items()}


def under(prefix: str, results: Results) -> Results:
    return {name.removeprefix(f"{prefix}/"): one for name, one in results.items() if name.startswith(f"{prefix}/")}


def all_checks(rank: int, bert: str, vit: str) -> Results:
    """Everything below that needs two processes, in one go; what is left in the gradients."""
    results: Results = {}
    for check in (*STEPS, "naive_last_sync", "own_loop"):
        results |= named(check, globals()[f"step_{check}"](setup(bert, vit, rank)))
    for number, gradients in enumerate(loss_gradients(rank, DistributedContrastiveLoss)):
        average_gradients(gradients.parameters())
        results |= named(f"loss{number}", gradients_of(gradients))
    results |= named(
        "train_step", weights_after_two_steps(setup(bert, vit, rank), DistributedContrastiveLoss(0, SCALE))
    )
    results |= named("exchange", exchanged(rank))
    step_hooks_and_reentrant(setup(bert, vit, rank))
    return results


def step_one_two_tower(made: Setup) -> Results:
    model = parallel(made.model)
    loss = DistributedContrastiveLoss(scale=SCALE)
    GradCache(model, [3, 2], loss)(made.queries, made.documents, no_sync_except_last=True)
    return gradients_of(made.model)


def step_kept_graphs(made: Setup) -> Results:
    """Several graphs wait for their backward, which DDP's own exchange is not made for."""
    cache = GradCache(parallel(made.model), [3, 2], DistributedContrastiveLoss(scale=SCALE), retain=0.6)
    with pytest.raises(UsageError, match="needs no_sync_except_last=True"):
        cache(made.queries, made.documents)
    cache(made.queries, made.documents, no_sync_except_last=True)
    return gradients_of(made.model)


def step_two_models(made: Setup) -> Results:
    models = [parallel(made.model.text), parallel(made.model.vision)]
    cache = GradCache(models, 2, DistributedContrastiveLoss(scale=SCALE), get_rep_fn=lambda out: out[:, :20])
    cache(made.queries, made.documents, no_sync_except_last=True)
    return gradients_of(made.model)


def step_shared_synced_per_chunk(made: Setup) -> Results:
    """DDP's own exchange after every chunk; every rank must have as many chunks."""
    model = parallel(made.model.text)
    GradCache(model, 2, DistributedContrastiveLoss(scale=SCALE))(made.queries, made.other_texts)
    return gradients_of(made.model)


def step_reentrant_checkpointing(made: Setup) -> Results:
    """Each layer's backward in a backward of its own, which DDP's hooks count twice."""
    for tower in (made.model.text, made.model.vision):
        checkpoint_activations(tower, reentrant=True)
    model = DistributedDataParallel(made.model, find_unused_parameters=True)
    loss = DistributedContrastiveLoss(scale=SCALE)
    GradCache(model, [3, 2], loss)(made.queries, made.documents, no_sync_except_last=True)
    return gradients_of(made.model)


def step_hooks_and_reentrant(made: Setup) -> Results:
    """The same with DDP's own exchange per chunk, which it refuses."""
    checkpoint_activations(made.model.text, reentrant=True)
    model = DistributedDataParallel(made.model.text, find_unused_parameters=True)
    with pytest.raises(RuntimeError, match="mark a variable ready only once"):
        GradCache(model, 2, DistributedContrastiveLoss(scale=SCALE))(made.queries, made.other_texts)
    return {}


def step_learned_scale(made: Setup) -> Results:
    loss = LearnedScale(DistributedContrastiveLoss)
    GradCache(parallel(made.model), 2, loss)(made.queries, made.documents, no_sync_except_last=True)
    return gradients_of(made.model, loss)


def step_one_chunk(made: Setup) -> Results:
    """The plain step, exchanged the same way."""
    loss = DistributedContrastiveLoss(scale=SCALE)
    GradCache(parallel(made.model), 7, loss)(made.queries, made.documents, no_sync_except_last=True)
    return gradients_of(made.model)


def step_own_loop(made: Setup) -> Results:
    @cat_input_tensor
    @gather_input_tensor
    def loss_of(queries: Tensor, documents: Tensor) -> Tensor:
        return contrast(queries, documents, SCALE) * 2  # ranks

    @cached
    def embed(chunk: dict[str, Tensor]) -> Tensor:
        return made.model(**chunk)

    embedded = [[embed(take_rows(side, row, row + 1)) for row in range(len(next(iter(side.values()))))]
                for side in (made.queries, made.documents)]  # fmt: skip
    loss_of(*[[leaf for leaf, _ in side] for side in embedded]).backward()
    for leaf, replay in [chunk for side in embedded for chunk in side]:
        replay(leaf)
    average_gradients(made.model.parameters())
    return gradients_of(made.model)


def step_naive_last_sync(made: Setup) -> Results:
    """What no_sync_except_last does elsewhere: DDP exchanges at the backward of the last chunk."""
    model = parallel(made.model)
    cache = GradCache(model, 2, DistributedContrastiveLoss(scale=SCALE))
    parts = [cache.split_inputs(side, 2) for side in (made.queries, made.documents)]
    embedded = [cache.forward_no_grad(model, chunks) for chunks in parts]
    gradients, _ = cache.build_cache(*[reps for reps, _ in embedded])
    with model.no_sync():
        cache.forward_backward(model, parts[0], gradients[0].split(2), embedded[0][1])
        cache.forward_backward(model, parts[1][:-1], gradients[1].split(2)[:-1], embedded[1][1][:-1])
    cache.forward_backward(model, parts[1][-1:], gradients[1].split(2)[-1:], embedded[1][1][-1:])
    return gradients_of(made.model)


def loss_gradients(rank: int | None, kind: type[SimpleContrastiveLoss]) -> Iterator[nn.Linear]:
    """Layers with the gradient of a loss of each kind: hard negatives, targets, a sum, a learned scale."""
    for n_hard_negatives, has_target, reduction in ((0, False, "mean"), (2, False, "mean"), (1, True, "sum")):
        per_query = 1 + n_hard_negatives
        torch.manual_seed(0)
        layer, rows = nn.Linear(4, 3).double(), torch.randn(7 * (1 + per_query), 4).double()
        start, stop = (0, 7) if rank is None else QUERIES[rank]
        x, y = rows[start:stop], rows[7:][start * per_query : stop * per_query]
        # Each query's second document, from the end, counted among the rank's own or all.
        target = torch.arange(start, stop).flip(0) * per_query + 1 - start * per_query if has_target else None
        if has_target and rank is None:
            target = torch.cat([torch.arange(*QUERIES[one]).flip(0) for one in QUERIES]) * per_query + 1
        scale = layer.bias.sum().exp()
        kind(n_hard_negatives, scale)(layer(x), layer(y), target, reduction).backward()
        yield layer


def weights_after_two_steps(made: Setup, loss: SimpleContrastiveLoss) -> Results:
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-2, eps=1e-3)
    for _ in range(2):
        sides = [ChunkedSide(lambda chunk: made.model(**chunk), side, 2) for side in (made.queries, made.documents)]
        train_step(sides, loss, optimizer, max_grad_norm=0.1)
    return {name: parameter.detach() for name, parameter in made.model.named_parameters()}


def exchanged(rank: int) -> Results:
    """What `gather_rows` and `average_gradients` make of unlike ranks."""
    own = torch.full((2 * rank, 3), float(rank), requires_grad=True)  # rank 0 has no row
    gathered = torch.cat(gather_rows(own))
    (gathered * 5).sum().backward()
    with pytest.raises(UsageError, match=r"differing shapes.*\(2, 3\), \(2, 4\)"):
        gather_rows(torch.zeros(2, 3 + rank))
    layers = nn.ModuleList(nn.Linear(2, 2, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.float32))
    layers[rank].weight.grad = torch.ones_like(layers[rank].weight)  # each rank lacks the other's
    average_gradients(layers.parameters())
    assert gradients_of(layers[2]) == {}
    assert layers[0].bias.grad is None
    return {"rows": gathered.detach(), "own": own.grad, **gradients_of(layers)}


@pytest.fixture(scope="module")
def ranks(bert_folder: str, vit_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What both processes found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    return run_ranks(all_checks, folder, bert_folder, vit_folder)


@pytest.fixture(scope="module")
def whole(bert_folder: str, vit_folder: str) -> Setup:
    """The same model in one process with all rows."""
    return setup(bert_folder, vit_folder, None)


@pytest.mark.parametrize("step", [*STEPS, "own_loop"])
def test_two_processes_have_the_gradient_of_one(ranks, whole, step):
    loss = LearnedScale(SimpleContrastiveLoss)
    shared = step == "shared_synced_per_chunk"
    documents = whole.other_texts if shared else whole.documents
    if shared:
        value = contrast(whole.model.text(**whole.queries), whole.model.text(**documents), SCALE)
        expected = graph_gradients(value, whole.model)
    elif step == "learned_scale":
        value = loss(whole.model(**whole.queries), whole.model(**documents))
        expected = graph_gradients(value, whole.model, loss)
        assert "1.log_scale" in expected
    else:
        value = contrast(whole.model(**whole.queries), whole.model(**documents), SCALE)
        expected = graph_gradients(value, whole.model)
    for results in ranks:
        assert_gradients_equal(under(step, results), expected)


def test_an_exchange_at_the_last_chunk_would_be_seen(ranks, whole):
    """The test above is not vacuous: the tower that the last chunk does not use is left as it is on each rank."""
    expected = graph_gradients(
        contrast(whole.model(**whole.queries), whole.model(**whole.documents), SCALE), whole.model
    )
    text = [
        {name: one for name, one in gradients.items() if name.startswith("0.text")}
        for gradients in (expected, *[under("naive_last_sync", results) for results in ranks])
    ]
    assert relative_difference(text[1], text[0]) > 0.1
    assert relative_difference(text[1], text[2]) > 0.1


def test_the_loss_of_two_processes_has_the_gradient_of_one(ranks):
    expected = [gradients_of(layer) for layer in loss_gradients(None, SimpleContrastiveLoss)]
    assert len(expected) == 3
    for number, gradients in enumerate(expected):
        for results in ranks:
            assert_gradients_equal(under(f"loss{number}", results), gradients)


def test_a_ready_step_of_two_processes_is_that_of_one(ranks, whole, bert_folder, vit_folder):
    fresh = setup(bert_folder, vit_folder, None)
    expected = weights_after_two_steps(fresh, SimpleContrastiveLoss(0, SCALE))
    assert not torch.equal(fresh.model.text.model.embeddings.word_embeddings.weight,
                           whole.model.text.model.embeddings.word_embeddings.weight)  # fmt: skip
    for results in ranks:
        assert_gradients_equal(under("train_step", results), expected)


def test_rows_are_gathered_in_order_and_a_missing_gradient_counts_as_zero(ranks):
    for rank, results in enumerate(ranks):
        found = under("exchange", results)
        assert torch.equal(found["rows"], torch.ones(2, 3))
        assert torch.equal(found["own"], torch.full((2 * rank, 3), 5.0))
        weights = {name: gradient.unique().tolist() for name, gradient in found.items() if name.endswith("weight")}
        assert weights == {"0.0.weight": [0.5], "0.1.weight": [0.5]}
