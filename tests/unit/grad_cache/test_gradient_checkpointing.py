"""What docs/COEXISTENCE_FIX_GUIDE.md says of gradient caching together with gradient checkpointing."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from tests.gradients import assert_gradients_equal, relative_difference
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
from vembed.grad_cache.cachex.deferred import deferred_loss
from vembed.grad_cache.cachex.functional import ChunkedSide, cached_backward
from vembed.grad_cache.cachex.training import train_step
from vembed.grad_cache.cachex.tree_utils import concat_rows, list_tensors, split_rows
from vembed.grad_cache.functional import cached

FALSE_ALARM = "None of the inputs have requires_grad=True. Gradients will be None"
Inputs = dict[str, Tensor]


def narrow(queries: Tensor, documents: Tensor) -> Tensor:
    return contrast(queries[:, :20], documents[:, :20])


def sides(models: tuple[Encoder, Encoder], inputs: tuple[Inputs, Inputs], chunk_size: int) -> list[ChunkedSide]:
    def encode(chunk: Inputs, model: Encoder) -> Tensor:
        return model(**chunk)

    pairs = zip(models, inputs, strict=True)
    return [ChunkedSide(partial(encode, model=model), one, chunk_size) for model, one in pairs]


def by_grad_cache(models: tuple[Encoder, Encoder], inputs: tuple[Inputs, Inputs], chunk_size: int) -> None:
    GradCache(models, chunk_size, narrow)(*inputs)


def by_deferred_loss(models: tuple[Encoder, Encoder], inputs: tuple[Inputs, Inputs], chunk_size: int) -> None:
    """Backward within backward within backward: the loss's, a chunk's, a checkpoint's."""
    deferred_loss(sides(models, inputs, chunk_size), narrow).backward()


def by_own_loop(models: tuple[Encoder, Encoder], inputs: tuple[Inputs, Inputs], chunk_size: int) -> None:
    made = [[cached(side.encode)(chunk) for chunk in side.chunks()] for side in sides(models, inputs, chunk_size)]
    narrow(*[concat_rows([leaf for leaf, _ in side]) for side in made]).backward()
    for leaf, replay in [chunk for side in made for chunk in side]:
        replay(leaf)


def plain_step(models: tuple[Encoder, Encoder], inputs: tuple[Inputs, Inputs], chunk_size: int) -> dict[str, Tensor]:
    """One graph over chunks in order, without checkpoints."""
    made = [concat_rows([side.encode(one) for one in side.chunks()]) for side in sides(models, inputs, chunk_size)]
    return graph_gradients(narrow(*made), *models)


@pytest.fixture
def inputs(bert_folder: str) -> tuple[Inputs, Inputs]:
    return dict(texts(bert_folder, 7)), pictures(7)


def encoders(bert: str, vit: str, dropout: float = 0.3) -> tuple[Encoder, Encoder]:
    return Encoder(bert, dropout), Encoder(vit, dropout)


@pytest.mark.filterwarnings(f"ignore:{FALSE_ALARM}")
@pytest.mark.parametrize("step", [by_grad_cache, by_own_loop, by_deferred_loss])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("chunk_size", [3, 7])
def test_both_together_have_the_gradient_of_neither(
    bert_folder, vit_folder, inputs, step: Callable, reentrant, chunk_size
):
    """With dropout: what is drawn in the first run is drawn in the replay, and again when it is recomputed."""
    torch.manual_seed(1)
    expected = plain_step(encoders(bert_folder, vit_folder), inputs, chunk_size)
    after = torch.get_rng_state()
    models = encoders(bert_folder, vit_folder)
    for model in models:
        checkpoint_activations(model, reentrant=reentrant)
    torch.manual_seed(1)
    step(models, inputs, chunk_size)
    assert_gradients_equal(gradients_of(*models), expected)
    assert torch.equal(torch.get_rng_state(), after)


def dropping(rows: Tensor, layer: nn.Linear, **options: bool) -> Tensor:
    """A layer with dropout, under a checkpoint."""
    return checkpoint(lambda x: nn.functional.dropout(layer(x), 0.5), rows, use_reentrant=False, **options)


def test_a_checkpoint_that_does_not_keep_random_numbers_is_wrong_with_or_without_caching():
    torch.manual_seed(0)
    layer, rows = nn.Linear(6, 5).double(), torch.randn(8, 6).double()

    def gradients(encode: Callable[[Tensor], Tensor], *, cache: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        if cache:
            cached_backward([ChunkedSide(encode, rows, 4)], lambda reps: contrast(reps, reps.flip(1), 1.0))
        else:
            reps = torch.cat([encode(chunk) for chunk in rows.split(4)])
            contrast(reps, reps.flip(1), 1.0).backward()
        return gradients_of(layer)

    kept, lost = partial(dropping, layer=layer), partial(dropping, layer=layer, preserve_rng_state=False)
    expected = gradients(lambda chunk: nn.functional.dropout(layer(chunk), 0.5), cache=False)
    for cache in (False, True):
        assert_gradients_equal(gradients(kept, cache=cache), expected)
        assert relative_difference(gradients(lost, cache=cache), expected) > 0.1


def test_how_often_a_layer_runs_forward(bert_folder, inputs):
    """Once without a graph, once with it (but for the last chunk, which keeps its own), once to recompute."""

    def runs(*, checkpointed: bool, chunk_size: int) -> int:
        model = Encoder(bert_folder)
        if checkpointed:
            checkpoint_activations(model, reentrant=False)
        seen: list[int] = []
        model.model.encoder.layer[0].intermediate.register_forward_hook(lambda *_call: seen.append(1))
        GradCache(model, chunk_size, lambda reps: contrast(reps, reps.flip(1)))(inputs[0])
        return len(seen)

    assert runs(checkpointed=False, chunk_size=7) == 1
    assert runs(checkpointed=True, chunk_size=7) == 2
    assert runs(checkpointed=False, chunk_size=3) == 3 + 2
    assert runs(checkpointed=True, chunk_size=3) == 3 + 2 + 3


class Checkpointed(nn.Module):
    """A frozen layer, and one that learns behind it under a checkpoint, as people write it by hand."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.frozen, self.layer, self.reentrant = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3), reentrant

    def forward(self, rows: Tensor) -> Tensor:
        return checkpoint(self.layer, self.frozen(rows), use_reentrant=self.reentrant)


@pytest.mark.filterwarnings(f"ignore:{FALSE_ALARM}")
def test_a_reentrant_checkpoint_behind_frozen_layers_cuts_the_graph_and_that_is_told():
    """Without caching torch refuses; with it, the graph of the loss begins at the representations, so we must."""
    rows = torch.randn(6, 4)
    model = Checkpointed(reentrant=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(rows).sum().backward()
    with pytest.raises(UsageError, match=r"none got a gradient.*use_reentrant=False"):
        GradCache(model, 4, Tensor.sum)(rows)
    side = ChunkedSide(model, rows, 4)
    with pytest.raises(UsageError, match="no parameter of the optimizer got a gradient"):
        train_step([side], Tensor.sum, torch.optim.SGD(model.layer.parameters(), lr=0.1))
    model.reentrant = False
    GradCache(model, 4, Tensor.sum)(rows)
    assert set(gradients_of(model)) == {"0.layer.weight", "0.layer.bias"}


def test_a_replay_of_other_inputs_is_told_by_the_checkpoint():
    """Inputs that change in place between the runs: the recomputed tensors have other shapes than the saved ones."""
    layer, rows = nn.Linear(3, 3), [torch.randn(4, 3)]

    def encode(_chunk: Tensor) -> Tensor:
        return checkpoint(lambda: layer(rows[0]).tanh(), use_reentrant=False)

    leaf, replay = cached(encode)(torch.zeros(4))
    leaf.sum().backward()
    hook = layer.register_forward_hook(lambda *_call: rows.__setitem__(0, torch.randn(2, 3)))
    with pytest.raises(CheckpointError, match="different metadata"):
        replay(leaf)
    hook.remove()


def test_a_checkpoint_per_chunk_is_a_gradient_cache_by_other_means(bert_folder, inputs):
    """The other way to the same gradient: each chunk one checkpoint in one graph."""
    model = Encoder(bert_folder, dropout=0.3)

    def loss(reps: Tensor) -> Tensor:
        return contrast(reps, reps.flip(1))

    torch.manual_seed(1)
    chunks = split_rows(inputs[0], 4)
    reps = torch.cat([checkpoint(lambda chunk: model(**chunk), chunk, use_reentrant=False) for chunk in chunks])
    expected = graph_gradients(loss(reps), model)
    torch.manual_seed(1)
    GradCache(model, 4, loss)(inputs[0])
    assert_gradients_equal(gradients_of(model), expected)
    assert len(list_tensors(inputs[0])) == 3
