"""Loops of one's own with the decorators have the gradient of one graph, and say what was done in the wrong order."""

import pytest
import torch
from torch import Tensor, nn

from tests.gradients import assert_gradients_equal, relative_difference
from tests.unit.grad_cache.encoders import Encoder, contrast, gradients_of, graph_gradients, texts
from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import concat_rows, split_rows
from vembed.grad_cache.functional import cached, cat_input_tensor, gather_input_tensor
from vembed.types import Embeddings


@cached
def embed(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The representations of a chunk."""
    return model(**inputs)


@cat_input_tensor
@gather_input_tensor
def loss_of(queries: Tensor, documents: Tensor, *, scale: float = 10.0) -> Tensor:
    """The loss of all chunks."""
    return contrast(queries, documents, scale)


def loop(model: nn.Module, *sides: object, chunk_size: int, scale: float = 10.0) -> Tensor:
    embedded = [[embed(model, chunk) for chunk in split_rows(side, chunk_size)] for side in sides]
    assert not any(leaf.grad_fn for side in embedded for leaf, _ in side)
    loss = loss_of(*[[leaf for leaf, _ in side] for side in embedded], scale=scale)
    loss.backward()
    for leaf, replay in [chunk for side in embedded for chunk in side]:
        replay(leaf)
    return loss.detach()


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loop_has_the_gradient_of_one_graph(bert_folder, chunk_size, dtype):
    model = Encoder(bert_folder, dropout=0.3).to(dtype)
    sides = texts(bert_folder, 7), texts(bert_folder, 14, first=5)
    torch.manual_seed(1)
    chunks = [concat_rows([model(**chunk) for chunk in split_rows(side, chunk_size)]) for side in sides]
    expected_loss = contrast(*chunks, scale=5.0)
    expected = graph_gradients(expected_loss, model)
    torch.manual_seed(1)
    assert torch.allclose(loop(model, *sides, chunk_size=chunk_size, scale=5.0), expected_loss)
    assert_gradients_equal(gradients_of(model), expected)


@pytest.mark.parametrize("around", ["each forward", "the whole loop"])
def test_a_replay_runs_under_the_autocast_of_the_first_run(bert_folder, around):
    model = Encoder(bert_folder).float()
    sides = texts(bert_folder, 7), texts(bert_folder, 14, first=5)
    dtypes = []
    model.model.encoder.layer[1].output.dense.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))

    def gradients(*, autocast: bool) -> dict[str, Tensor]:
        embedded = []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            embedded = [[embed(model, chunk) for chunk in split_rows(side, 3)] for side in sides]
            if around == "the whole loop":
                finish(embedded)
        if around == "each forward":
            finish(embedded)
        return gradients_of(model)

    def finish(embedded: list) -> None:
        leaves = [[leaf for leaf, _ in side] for side in embedded]
        assert leaves[0][0].dtype == torch.float32
        loss_of(*leaves).backward()
        for leaf, replay in [chunk for side in embedded for chunk in side]:
            replay(leaf)

    exact = gradients(autocast=False)
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    assert 1e-4 < relative_difference(gradients(autocast=True), exact) < 0.1
    assert dtypes == [torch.bfloat16] * 16


def test_a_function_may_give_several_representations():
    torch.manual_seed(0)
    first, second, rows = nn.Linear(4, 3).double(), nn.Linear(4, 2).double(), torch.randn(6, 4).double()

    @cached
    def both(chunk: Tensor, *, factor: float) -> tuple[Tensor, Embeddings]:
        return first(chunk) * factor, Embeddings(second(chunk)[:, None])

    def loss(one: Tensor, other: Embeddings) -> Tensor:
        return contrast(one, one.flip(1)) + (other.vectors.sum() - 1) ** 2

    expected = graph_gradients(loss(first(rows) * 2, Embeddings(second(rows)[:, None])), first, second)
    *leaves, replays = zip(*[both(chunk, factor=2.0) for chunk in rows.split(4)], strict=True)
    cat_input_tensor(loss)(*leaves).backward()
    for one, other, replay in zip(*leaves, replays, strict=True):
        replay(one, other)
    assert_gradients_equal(gradients_of(first, second), expected)


def test_a_representation_that_the_loss_does_not_read_counts_nothing():
    layer, rows = nn.Linear(4, 3), torch.randn(2, 4)
    one, _other, replay = cached(lambda chunk: (layer(chunk), layer(chunk) ** 2))(rows)
    one.sum().backward()
    replay(one, _other)
    assert torch.allclose(layer.bias.grad, torch.full((3,), 2.0))


def test_a_replay_in_the_wrong_order_is_told():
    layer = nn.Linear(4, 3)
    leaf, replay = cached(layer)(torch.randn(2, 4))
    with pytest.raises(UsageError, match=r"no gradient to replay; call backward\(\)"):
        replay(leaf)
    with pytest.raises(UsageError, match="the 1 representations of its own call, not 2"):
        replay(leaf, leaf)


def test_only_chunks_are_joined():
    @cat_input_tensor
    def function(*args: object, **kwargs: object) -> tuple:
        """What it got."""
        return args, kwargs

    part = torch.ones(1, 2)
    (joined, names, empty, alone), keywords = function([part, part], ["a"], [], part, chunks=(part, part), n=1)
    assert (joined.shape, names, empty) == ((2, 2), ["a"], [])
    assert alone is part
    assert (keywords["chunks"].shape, keywords["n"]) == ((2, 2), 1)
    assert function.__doc__ == "What it got."


def test_one_process_gathers_its_own_rows():
    rows = torch.ones(2, 3, requires_grad=True)
    gather_input_tensor(lambda x, name, *, y: (x * 2).sum() + y.sum())(rows, "name", y=rows).backward()
    assert torch.equal(rows.grad, torch.full((2, 3), 3.0))


def test_one_of_several_processes_without_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2.*init_process_group first"):
        gather_input_tensor(torch.sum)(torch.ones(1))
