"""The cached gradient is the gradient: of any encoder, loss and chunking, in the memory of one chunk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from tests.gradients import assert_gradients_equal, relative_difference, take_gradients
from vembed.grad_cache.cachex import functional
from vembed.grad_cache.cachex.functional import ChunkedSide, cached_backward, embed_for_replay
from vembed.scoring import cosine, maxsim
from vembed.types import Embeddings

NUM_QUERIES, NUM_DOCUMENTS = 7, 10
CHUNK_SIZES = [1, 3, 7, 10]
SHARES = [0.0, 0.3, 0.8, 1.0]  # of the chunks of both sides together: none, some of the last side's, of both, all


class TwoTowers(nn.Module):
    """Two encoders with dropout, and a temperature that only the loss reads."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query_tower, self.document_tower = (
            nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)) for _ in range(2)
        )
        self.logit_scale = nn.Parameter(torch.tensor([1.0]))
        self.to(dtype)

    def loss(self, queries: Tensor, documents: Tensor) -> Tensor:
        scores = cosine(Embeddings(queries), Embeddings(documents)) * self.logit_scale.exp()
        return nn.functional.cross_entropy(scores, torch.arange(len(queries)))


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sides(model: TwoTowers, chunk_size: int | None) -> list[ChunkedSide]:
    dtype = model.logit_scale.dtype
    return [
        ChunkedSide(model.query_tower, rows(NUM_QUERIES, 1, dtype), chunk_size),
        ChunkedSide(model.document_tower, rows(NUM_DOCUMENTS, 2, dtype), chunk_size),
    ]


def plain_gradients(
    model: nn.Module, encoded: list[ChunkedSide], loss: Callable[..., Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """One graph over all chunks, encoded in order: the step as anybody would write it."""
    outputs = [torch.cat([side.encode(chunk) for chunk in side.chunks()]) for side in encoded]
    value = loss(*outputs)
    value.backward()
    return value.detach(), take_gradients(model.named_parameters())


def cached_gradients(
    model: nn.Module, encoded: list[ChunkedSide], loss: Callable[..., Tensor], retain: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    value = cached_backward(encoded, loss, retain=retain)
    return value, take_gradients(model.named_parameters())


@contextmanager
def counted_forwards(*modules: nn.Module) -> Iterator[list[int]]:
    """Notes the rows of every forward."""
    seen: list[int] = []
    hooks = [module.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0]))) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("retain", SHARES)
def test_cached_gradient_equals_plain_gradient(chunk_size, dtype, retain):
    model = TwoTowers(dtype=dtype)
    expected_loss, expected = plain_gradients(model, sides(model, None), model.loss)
    loss, gradients = cached_gradients(model, sides(model, chunk_size), model.loss, retain)
    assert torch.allclose(loss, expected_loss)
    assert not loss.requires_grad
    assert "logit_scale" in gradients
    assert_gradients_equal(gradients, expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 7])
@pytest.mark.parametrize("retain", SHARES)
def test_dropout_is_replayed(chunk_size, retain):
    model = TwoTowers(dropout=0.4)
    torch.manual_seed(5)
    expected_loss, expected = plain_gradients(model, sides(model, chunk_size), model.loss)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    loss, gradients = cached_gradients(model, sides(model, chunk_size), model.loss, retain)
    assert torch.allclose(loss, expected_loss)
    assert_gradients_equal(gradients, expected)
    assert torch.equal(torch.get_rng_state(), state)  # the second pass draws nothing of its own


def test_a_replay_with_other_random_numbers_would_be_seen(monkeypatch):
    """The test above is not vacuous: without the random state of the first pass it fails by far."""
    model = TwoTowers(dropout=0.4)
    torch.manual_seed(5)
    _, expected = plain_gradients(model, sides(model, 3), model.loss)
    monkeypatch.setattr(functional, "RandContext", lambda *_tensors: nullcontext())
    torch.manual_seed(5)
    _, gradients = cached_gradients(model, sides(model, 3), model.loss)
    assert relative_difference(gradients, expected) > 0.1


def test_one_chunk_is_one_forward_and_several_are_two_each_but_those_that_keep_their_graphs():
    model = TwoTowers()
    with counted_forwards(model.query_tower, model.document_tower) as seen:
        cached_backward(sides(model, 10), model.loss)
        assert seen == [7, 10]
        seen.clear()
        cached_backward(sides(model, 4), model.loss)
        assert seen == [*[4, 3, 4, 4, 2], *[4, 4, 3, 4]]
        seen.clear()
        cached_backward(sides(model, 4), model.loss, retain=0.4)
        assert seen == [*[4, 3, 4, 4, 2], *[4, 3, 4]]  # two keep their graphs
        seen.clear()
        cached_backward(sides(model, 4), model.loss, retain=1.0)
        assert seen == [4, 3, 4, 4, 2]


def test_each_side_has_its_own_chunk_size():
    model = TwoTowers()
    _, expected = plain_gradients(model, sides(model, None), model.loss)
    queries, documents = sides(model, None)
    mixed = [ChunkedSide(queries.encode, queries.inputs, 2), documents]
    assert_gradients_equal(cached_gradients(model, mixed, model.loss)[1], expected)


def test_one_shared_encoder_serves_both_sides():
    model = TwoTowers()
    shared = [ChunkedSide(model.query_tower, side.inputs, 3) for side in sides(model, 3)]
    _, expected = plain_gradients(model, shared, model.loss)
    assert "document_tower.0.weight" not in expected
    assert_gradients_equal(cached_gradients(model, shared, model.loss)[1], expected)


def test_a_single_side_and_a_third_side_are_sides_too():
    model = TwoTowers()
    queries, documents = sides(model, 3)

    def alone(first: Tensor) -> Tensor:
        return model.loss(first, first.flip(1))

    def triple(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return model.loss(first, second) + model.loss(third, second)

    third = ChunkedSide(model.document_tower, rows(5, 3), 2)
    for encoded, loss in (([queries], alone), ([queries, documents, third], triple)):
        _, expected = plain_gradients(model, encoded, loss)
        assert_gradients_equal(cached_gradients(model, encoded, loss)[1], expected)


def test_gradients_are_added_to_what_is_there():
    model = TwoTowers()
    _, once = cached_gradients(model, sides(model, 3), model.loss)
    cached_backward(sides(model, 3), model.loss)
    cached_backward(sides(model, 10), model.loss)
    twice = take_gradients(model.named_parameters())
    assert_gradients_equal(twice, {name: 2 * gradient for name, gradient in once.items()})


@pytest.mark.parametrize("chunk_size", [3, 10])
@pytest.mark.parametrize("loss_scale", [0.25, lambda loss: loss / 4])
def test_a_loss_scale_acts_on_the_gradient_alone(chunk_size, loss_scale):
    model = TwoTowers()
    loss, gradients = cached_gradients(model, sides(model, chunk_size), model.loss)
    scaled_loss = cached_backward(sides(model, chunk_size), model.loss, loss_scale=loss_scale)
    assert torch.equal(scaled_loss, loss)
    scaled = take_gradients(model.named_parameters())
    assert_gradients_equal(scaled, {name: gradient / 4 for name, gradient in gradients.items()})


def test_a_frozen_tower_gets_no_gradient_and_the_other_its_own():
    model = TwoTowers()
    _, expected = plain_gradients(model, sides(model, 3), model.loss)
    model.document_tower.requires_grad_(False)
    _, gradients = cached_gradients(model, sides(model, 3), model.loss)
    assert_gradients_equal(gradients, {name: expected[name] for name in expected if "document" not in name})


def test_a_side_that_the_loss_does_not_read_gets_no_gradient():
    model = TwoTowers()

    def loss(queries: Tensor, _documents: Tensor) -> Tensor:
        return model.loss(queries, queries.flip(1))

    _, expected = plain_gradients(model, sides(model, 3), loss)
    assert_gradients_equal(cached_gradients(model, sides(model, 3), loss)[1], expected)


def test_multi_vector_chunks_of_differing_token_counts_equal_one_batch():
    """Each chunk is as wide as its own longest row, so chunks must be padded to meet."""
    model = TwoTowers()
    lengths = {"queries": [2, 1, 3, 3, 1], "documents": [4, 1, 1, 2, 5, 3]}
    inputs = {name: (rows(5 * len(sizes), 1).view(-1, 5, 6), torch.tensor(sizes)) for name, sizes in lengths.items()}

    def encode(chunk: tuple[Tensor, Tensor]) -> Embeddings:
        tokens, sizes = chunk
        longest = int(sizes.max())
        return Embeddings(model.query_tower(tokens[:, :longest]), torch.arange(longest) < sizes[:, None])

    def loss(queries: Embeddings, documents: Embeddings) -> Tensor:
        scores = maxsim(queries, documents) * model.logit_scale.exp()
        return nn.functional.cross_entropy(scores, torch.arange(len(scores)))

    expected_loss = loss(*[encode(part) for part in inputs.values()])
    expected_loss.backward()
    expected = take_gradients(model.named_parameters())
    for chunk_size in (1, 2, 3, 6):
        encoded = [ChunkedSide(encode, part, chunk_size) for part in inputs.values()]
        value, gradients = cached_gradients(model, encoded, loss)
        assert value.item() == pytest.approx(expected_loss.item(), rel=1e-12)
        assert_gradients_equal(gradients, expected)


@pytest.mark.parametrize("around", ["each forward", "the whole step"])
@pytest.mark.parametrize("retain", SHARES)
@pytest.mark.parametrize("chunk_size", [1, 3, 10])
def test_under_autocast_the_gradient_is_as_close_to_float32_as_the_plain_one(chunk_size, retain, around):
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def in_bfloat16(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(chunk: Tensor) -> Tensor:
            with autocast():
                output = encode(chunk)
            assert output.dtype == torch.bfloat16
            return output

        return run

    def loss(queries: Tensor, documents: Tensor) -> Tensor:
        assert queries.dtype == documents.dtype == torch.float32
        return model.loss(queries, documents)

    model = TwoTowers(dtype=torch.float32)
    _, exact = plain_gradients(model, sides(model, None), model.loss)
    encoded = [ChunkedSide(in_bfloat16(side.encode), side.inputs, chunk_size) for side in sides(model, None)]
    whole = [ChunkedSide(side.encode, side.inputs) for side in encoded]
    with autocast() if around == "the whole step" else nullcontext():
        _, plain = cached_gradients(model, whole, loss)
        _, cached = cached_gradients(model, encoded, loss, retain)
    error = relative_difference(plain, exact)
    assert 1e-4 < error < 0.05
    assert relative_difference(cached, exact) < 1.5 * error
    assert {gradient.dtype for gradient in cached.values()} == {torch.float32}


class LiveGraphs:
    """Counts the bytes that graphs hold for their backward, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(self, tensor)


class Held:
    """A tensor that a graph holds; gone when the graph is."""

    def __init__(self, graphs: LiveGraphs, tensor: Tensor) -> None:
        self.graphs, self.tensor = graphs, tensor
        graphs.now += tensor.nbytes
        graphs.most = max(graphs.most, graphs.now)

    def __del__(self) -> None:
        self.graphs.now -= self.tensor.nbytes


def most_bytes_held(chunk_size: int | None, retain: float = 0.0) -> int:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(10)]
    model = nn.Sequential(*layers)
    graphs = LiveGraphs()

    def encode(chunk: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(graphs.pack, lambda held: held.tensor):
            return model(chunk)

    inputs = [torch.randn(320, 4), torch.randn(320, 4)]
    sides = [ChunkedSide(encode, side, chunk_size) for side in inputs]
    cached_backward(sides, lambda a, b: (a * b).sum(), retain=retain)
    assert graphs.now == 0
    return graphs.most


def test_no_more_than_one_chunk_has_a_graph_at_a_time():
    whole = most_bytes_held(None)
    assert most_bytes_held(32) < 1.2 * whole / 20


def test_graphs_that_are_kept_are_gone_before_others_are_made():
    one = most_bytes_held(32)
    assert 3.9 * one < most_bytes_held(32, retain=4 / 20) < 4.1 * one


def test_a_batch_without_rows_on_a_side_is_one_empty_chunk():
    model = TwoTowers()
    queries, documents = sides(model, 3)
    empty = ChunkedSide(model.document_tower, documents.inputs[:0], 3)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return model.loss(first, first.flip(1)) + second.sum()

    _, expected = plain_gradients(model, [queries, empty], loss)
    assert_gradients_equal(cached_gradients(model, [queries, empty], loss)[1], expected)


def test_a_side_is_cut_as_it_says():
    model = TwoTowers()
    queries, documents = sides(model, 3)

    def by_stride(inputs: Tensor, chunk_size: int) -> list[Tensor]:
        return [inputs[start::chunk_size] for start in range(chunk_size)]

    order = torch.cat(by_stride(torch.arange(NUM_QUERIES), 3))
    cut = ChunkedSide(queries.encode, queries.inputs, 3, by_stride)
    expected_loss, expected = plain_gradients(model, [queries, documents], model.loss)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return model.loss(first[order.argsort()], second)

    value, gradients = cached_gradients(model, [cut, documents], loss)
    assert torch.allclose(value, expected_loss)
    assert_gradients_equal(gradients, expected)


def test_moves_one_and_three_can_be_made_apart():
    model = TwoTowers(dropout=0.4)
    torch.manual_seed(5)
    _, expected = plain_gradients(model, sides(model, 3), model.loss)
    torch.manual_seed(5)
    embedded = [[embed_for_replay(side.encode, chunk) for chunk in side.chunks()] for side in sides(model, 3)]
    model.loss(*[torch.cat([leaves for leaves, _ in side]) for side in embedded]).backward()
    for leaves, replay in [chunk for side in embedded for chunk in side]:
        replay(leaves)
    assert_gradients_equal(take_gradients(model.named_parameters()), expected)
