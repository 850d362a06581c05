"""GradCache, with the interface of the paper's package, has the gradient of one graph: models, inputs, precisions."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.gradients import assert_gradients_equal, relative_difference
from tests.unit.grad_cache.encoders import Encoder, contrast, gradients_of, graph_gradients, pictures, texts
from vembed.errors import UsageError
from vembed.grad_cache import GradCache
from vembed.grad_cache.cachex import functional
from vembed.grad_cache.cachex.tree_utils import concat_rows, split_rows
from vembed.scoring import l2_normalize, maxsim
from vembed.types import Embeddings, Inputs, Ragged

NUM_QUERIES, NUM_DOCUMENTS = 7, 14


def chunked(model: nn.Module, inputs: object, chunk_size: int) -> Tensor:
    """One graph over chunks in order, which draws the random numbers that a cached step draws."""
    return concat_rows([model(**chunk) for chunk in split_rows(inputs, chunk_size)])


@pytest.fixture
def towers(bert_folder: str, vit_folder: str) -> tuple[Encoder, Encoder, object, object]:
    """A text and an image encoder of unlike widths, cut to the narrower one, with dropout, and their inputs."""
    queries, documents = Encoder(bert_folder, dropout=0.3), Encoder(vit_folder, dropout=0.3)
    return queries, documents, texts(bert_folder, NUM_QUERIES), pictures(NUM_DOCUMENTS)


def narrow(queries: Tensor, documents: Tensor, **options: float) -> Tensor:
    width = min(queries.shape[1], documents.shape[1])
    return contrast(queries[:, :width], documents[:, :width], **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_sizes", [1, 3, [2, 5], [7, 4], [7, 14]], ids=str)
def test_two_models_have_the_gradient_of_one_graph(towers, chunk_sizes, dtype):
    query_model, document_model, queries, documents = towers
    nn.ModuleList([query_model, document_model]).to(dtype)
    sizes = [chunk_sizes] * 2 if isinstance(chunk_sizes, int) else chunk_sizes
    torch.manual_seed(1)
    expected_loss = narrow(chunked(query_model, queries, sizes[0]), chunked(document_model, documents, sizes[1]))
    expected = graph_gradients(expected_loss, query_model, document_model)
    torch.manual_seed(1)
    loss = GradCache([query_model, document_model], chunk_sizes, narrow)(queries, documents)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_gradients_equal(gradients_of(query_model, document_model), expected)


@pytest.mark.parametrize("retain", [0, 0.5, 1])
def test_kept_graphs_change_nothing_but_the_number_of_forwards(towers, retain):
    query_model, document_model, queries, documents = towers
    torch.manual_seed(1)
    plain = narrow(chunked(query_model, queries, 2), chunked(document_model, documents, 7))
    expected = graph_gradients(plain, query_model, document_model)
    seen = []
    for model in (query_model, document_model):
        model.register_forward_hook(lambda *_call: seen.append(1))
    torch.manual_seed(1)
    GradCache([query_model, document_model], [2, 7], narrow, retain=retain)(queries, documents)
    assert len(seen) == 6 + {0: 5, 0.5: 3, 1: 0}[retain]
    assert_gradients_equal(gradients_of(query_model, document_model), expected)


@pytest.mark.parametrize("given", ["once", "twice"])
def test_one_model_serves_all_inputs(bert_folder, given):
    model = Encoder(bert_folder)
    queries, documents = texts(bert_folder, NUM_QUERIES), texts(bert_folder, NUM_DOCUMENTS, first=5)
    expected = graph_gradients(contrast(model(**queries), model(**documents)), model)
    GradCache(model if given == "once" else [model, model], [3, 4], contrast).cache_step(queries, documents)
    assert_gradients_equal(gradients_of(model), expected)


def broken_random_state(monkeypatch):
    monkeypatch.setattr(functional, "RandContext", lambda *_tensors: nullcontext())


def lost_chunk(monkeypatch):
    replay, calls = functional._pass_back, []

    def all_but_the_second(chunk: object) -> None:
        calls.append(chunk)
        if len(calls) != 2:
            replay(chunk)

    monkeypatch.setattr(functional, "_pass_back", all_but_the_second)


@pytest.mark.parametrize("break_it", [broken_random_state, lost_chunk])
def test_a_broken_replay_would_be_seen(towers, break_it, monkeypatch):
    query_model, document_model, queries, documents = towers
    torch.manual_seed(1)
    plain = narrow(chunked(query_model, queries, 3), chunked(document_model, documents, 3))
    expected = graph_gradients(plain, query_model, document_model)
    break_it(monkeypatch)
    torch.manual_seed(1)
    GradCache([query_model, document_model], 3, narrow)(queries, documents)
    assert relative_difference(gradients_of(query_model, document_model), expected) > 1e-2


@dataclass(frozen=True)
class Page:
    """A picture's patches, differing in number from page to page, and its title."""

    patches: Ragged
    title: Tensor


class PageEncoder(nn.Module):
    """The mean of a page's patches (zero without any) and its title, mixed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.title = nn.Linear(5, 4).double(), nn.Linear(3, 4).double()

    def forward(self, page: Page) -> Tensor:
        counts = page.patches.counts
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        sums = self.title(page.title).index_add(0, rows, self.patch(page.patches.values).tanh())
        return sums / (1 + counts[:, None])


def pages() -> Page:
    torch.manual_seed(3)
    counts = torch.tensor([2, 0, 5, 1, 3, 0, 2])
    return Page(Ragged(torch.randn(13, 5, dtype=torch.float64), counts), torch.randn(7, 3, dtype=torch.float64))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7])
def test_dataclasses_with_ragged_rows_are_inputs(chunk_size):
    model = PageEncoder()

    def loss(reps: Tensor) -> Tensor:
        return contrast(reps, reps.flip(1))

    expected = graph_gradients(loss(model(pages())), model)
    GradCache(model, chunk_size, loss)(pages())
    assert_gradients_equal(gradients_of(model), expected)


class Mixer(nn.Module):
    """Takes tensors in any of the forms of a call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3).double()

    def forward(self, first: Tensor, second: Tensor | None = None, *, third: Tensor | None = None) -> Tensor:
        return self.layer(first if second is None else first * second) + (0 if third is None else third[:, None])


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class PairModel(Mixer):
    """Takes a named tuple as one value."""

    def forward(self, pair: Pair) -> Tensor:
        return super().forward(pair.left, pair.right)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, C = numbers(6, 4, seed=1), numbers(6, 4, seed=2), numbers(6, seed=3)


@pytest.mark.parametrize(
    ("model", "model_input", "call"),
    [
        (Mixer, A, lambda model: model(A)),
        (Mixer, [A, B], lambda model: model(A, B)),
        (Mixer, (A, B), lambda model: model(A, B)),
        (Mixer, {"first": A, "third": C}, lambda model: model(first=A, third=C)),
        (Mixer, ([A, B], {"third": C}), lambda model: model(A, B, third=C)),
        (PairModel, Pair(A, B), lambda model: model(Pair(A, B))),
    ],
    ids=["tensor", "list", "tuple", "mapping", "list and mapping", "named tuple"],
)
def test_an_input_is_spread_over_the_models_arguments(model, model_input, call: Callable):
    module = model()
    expected = graph_gradients(contrast(call(module), call(module).flip(1)), module)
    GradCache(module, 4, lambda reps: contrast(reps, reps.flip(1)))(model_input)
    assert_gradients_equal(gradients_of(module), expected)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_vectors_of_every_token_are_padded_and_masked_to_meet(bert_folder, chunk_size):
    """Late interaction, where each chunk is as wide as its own longest text."""
    model, queries = Encoder(bert_folder).model, texts(bert_folder, 7)

    def embed(inputs: dict[str, Tensor]) -> Embeddings:
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        cut = {name: value[:, :longest] for name, value in inputs.items()}
        return Embeddings(l2_normalize(model(**cut).last_hidden_state), cut["attention_mask"].bool())

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> Embeddings:
            return embed(inputs)

    def loss(reps: Embeddings) -> Tensor:
        return nn.functional.cross_entropy(maxsim(reps, reps), torch.arange(7).flip(0))

    tokens = Tokens()
    expected = graph_gradients(loss(embed(queries)), tokens)
    GradCache(tokens, chunk_size, loss)(queries)
    assert_gradients_equal(gradients_of(tokens), expected)


def test_inputs_of_vembed_are_inputs():
    """A model that takes `Inputs`, as those of this library do."""

    class Reader(Mixer):
        def forward(self, inputs: Inputs) -> Tensor:
            return super().forward(inputs.tensors["a"].values)

    model, inputs = Reader(), Inputs(6, {"a": Ragged(A, torch.ones(6, dtype=torch.int64))})
    expected = graph_gradients(contrast(model(inputs), model(inputs).flip(1)), model)
    GradCache(model, 4, lambda reps: contrast(reps, reps.flip(1)))(inputs)
    assert_gradients_equal(gradients_of(model), expected)


def test_split_and_rep_functions_are_used(bert_folder):
    """Chunks of a list of texts, tokenised each to its own length by the model, which returns more than it should."""
    model = Encoder(bert_folder).model
    lines = [texts(bert_folder, 1, first=row) for row in range(5)]

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *rows: object) -> dict[str, Tensor]:
            states = torch.cat([self.model(**row).last_hidden_state[:, 0] for row in rows])
            return {"states": states, "other": states.sum()}

    reader = Reader()

    def loss(reps: Tensor) -> Tensor:
        return contrast(reps, reps.flip(1), scale=0.1)

    expected = graph_gradients(loss(reader(*lines)["states"]), reader)
    seen = []

    def split(rows: list, chunk_size: int) -> list[list]:
        seen.append((len(rows), chunk_size))
        return [rows[:1], rows[1:]]

    GradCache(reader, 3, loss, split_input_fn=split, get_rep_fn=lambda out: out["states"])(lines)
    assert seen == [(5, 3)]
    assert_gradients_equal(gradients_of(reader), expected)


def test_what_a_subclass_overrides_is_used(bert_folder):
    class Mine(GradCache):
        def split_inputs(self, model_input, chunk_size):
            called.add("split_inputs")
            return super().split_inputs(model_input, chunk_size)

        def get_input_tensors(self, model_input):
            called.add("get_input_tensors")
            return super().get_input_tensors(model_input)

        def model_call(self, model, model_input):
            called.add("model_call")
            return model(**model_input) * 2

        def get_reps(self, model_out):
            called.add("get_reps")
            return model_out / 2

        def compute_loss(self, *reps, **loss_kwargs):
            called.add("compute_loss")
            return super().compute_loss(*reps, **loss_kwargs) * 3

    called: set[str] = set()
    model = Encoder(bert_folder)
    queries, documents = texts(bert_folder, 4), texts(bert_folder, 4, first=5)
    expected = graph_gradients(3 * contrast(model(**queries), model(**documents), scale=2.0), model)
    Mine(model, 3, contrast)(queries, documents, scale=2.0)
    assert called == {"split_inputs", "get_input_tensors", "model_call", "get_reps", "compute_loss"}
    assert_gradients_equal(gradients_of(model), expected)


def test_an_override_that_would_be_passed_by_is_refused():
    with pytest.raises(UsageError, match="Mine overrides build_cache, which cache_step does not call"):

        class Mine(GradCache):
            def build_cache(self, *reps, **loss_kwargs):
                return super().build_cache(*reps, **loss_kwargs)

    class Whole(GradCache):
        def build_cache(self, *reps, **loss_kwargs):
            return super().build_cache(*reps, **loss_kwargs)

        def cache_step(self, *model_inputs, no_sync_except_last=False, **loss_kwargs):
            return super().cache_step(*model_inputs, **loss_kwargs)

    assert Whole(nn.Linear(1, 1), 1, contrast)


def test_the_three_moves_one_by_one_are_the_step(towers):
    query_model, document_model, queries, documents = towers
    cache = GradCache([query_model, document_model], [2, 5], narrow)
    torch.manual_seed(1)
    expected_loss = cache(queries, documents, scale=3.0)
    expected = gradients_of(query_model, document_model)
    torch.manual_seed(1)
    parts = [(query_model, cache.split_inputs(queries, 2), 2), (document_model, cache.split_inputs(documents, 5), 5)]
    embedded = [cache.forward_no_grad(model, chunks) for model, chunks, _ in parts]
    assert not any(reps.requires_grad for reps, _ in embedded)
    gradients, loss = cache.build_cache(*[reps for reps, _ in embedded], scale=3.0)
    for (model, chunks, size), (_, states), gradient in zip(parts, embedded, gradients, strict=True):
        cache.forward_backward(model, chunks, gradient.split(size), states)
    assert torch.equal(loss, expected_loss)
    assert_gradients_equal(gradients_of(query_model, document_model), expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 14])
def test_under_bfloat16_autocast_the_gradient_is_as_close_to_float32_as_the_plain_one(towers, chunk_size):
    query_model, document_model, queries, documents = towers
    modules = nn.ModuleList([query_model, document_model]).eval().float()

    def gradients(size: int, *, autocast: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            GradCache([query_model, document_model], size, narrow)(queries, documents)
        return gradients_of(*modules)

    exact = gradients(14, autocast=False)
    error = relative_difference(gradients(14, autocast=True), exact)
    assert 1e-4 < error < 0.1
    assert relative_difference(gradients(chunk_size, autocast=True), exact) < 1.5 * error


@pytest.mark.parametrize("chunk_size", [3, 14])
def test_fp16_runs_the_models_in_float16_and_scales_the_loss(towers, chunk_size):
    query_model, document_model, queries, documents = towers
    modules = nn.ModuleList([query_model, document_model]).eval().float()
    exact = graph_gradients(narrow(query_model(**queries), document_model(**documents)), *modules)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    dtypes = set()
    hook = query_model.model.encoder.layer[1].output.dense.register_forward_hook(
        lambda *call: dtypes.add(call[2].dtype)
    )

    def loss(*reps: Tensor) -> Tensor:
        assert {rep.dtype for rep in reps} == {torch.float32}
        return narrow(*reps)

    value = GradCache([query_model, document_model], chunk_size, loss, fp16=True, scaler=scaler)(queries, documents)
    hook.remove()
    assert dtypes == {torch.float16}
    assert value.item() < 10  # unscaled
    gradients = {name: gradient / 2.0**12 for name, gradient in gradients_of(*modules).items()}
    assert 1e-5 < relative_difference(gradients, exact) < 0.02


def test_a_scaler_alone_scales_the_gradient(bert_folder):
    model, batch = Encoder(bert_folder), texts(bert_folder, 4)
    plain = GradCache(model, 3, contrast)(batch, batch)
    expected = gradients_of(model)
    scaled = GradCache(model, 3, contrast, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))(batch, batch)
    assert torch.equal(plain, scaled)
    assert_gradients_equal(gradients_of(model), {name: gradient * 1024 for name, gradient in expected.items()})


def test_a_frozen_model_gets_no_gradient(towers):
    query_model, document_model, queries, documents = towers
    nn.ModuleList([query_model, document_model]).eval()
    expected = graph_gradients(narrow(query_model(**queries), document_model(**documents).detach()), query_model)
    document_model.requires_grad_(False)
    GradCache([query_model, document_model], 3, narrow)(queries, documents)
    assert gradients_of(document_model) == {}
    assert_gradients_equal(gradients_of(query_model), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: GradCache([], 1, contrast), "models: give at least one"),
        (lambda model: GradCache("bert-base", 1, contrast), "models: str is no torch.nn.Module"),
        (lambda model: GradCache(model, 2.0, contrast), r"chunk_sizes: \[2\.0\] must be whole numbers"),
        (lambda model: GradCache(model, 0, contrast), r"chunk_sizes: \[0\] must be whole numbers of at least 1"),
        (lambda model: GradCache(model, [], contrast), "chunk_sizes"),
        (lambda model: GradCache(model, [2.5], contrast), r"chunk_sizes: \[2\.5\]"),
        (lambda model: GradCache([model] * 3, [1, 2], contrast), "2 of them for 3 models"),
        (lambda model: GradCache(model, 1, contrast, retain=1.5), r"retain: 1\.5 must be a share"),
        (lambda model: GradCache(model, 1, contrast, fp16=True), "fp16 needs a scaler"),
        (lambda model: GradCache([model] * 2, 1, contrast)(A), "1 inputs for 2 models"),
        (lambda model: GradCache(model, [1, 2], contrast)(A, A, A), "3 inputs for 2 chunk_sizes"),
        (lambda model: GradCache(model, 1, contrast)(), "0 inputs"),
        (lambda model: GradCache(model, 1, contrast)(["text"]), "type list cannot be cut into rows.*split_input_fn"),
        (lambda model: GradCache(model, 1, contrast, lambda rows, size: [])(A), "made no chunk"),
        (lambda model: GradCache(model, 1, lambda reps: reps)(A), r"scalar tensor, not a tensor of shape \(6, 3\)"),
        (lambda model: GradCache(model, 1, lambda reps: reps.mean().item())(A), "scalar tensor, not float"),
        (lambda model: GradCache(model, 1, contrast)(A, A, no_sync_except_last=True), "not all models are"),
        (
            lambda model: GradCache(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 1, contrast)(A, A),
            "1 is batch norm in training mode",
        ),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(UsageError, match=message):
        make(Mixer())


def test_batch_norm_in_eval_mode_is_fine():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    model[1].eval()
    expected = graph_gradients(contrast(model(A), model(B)), model)
    GradCache(model, 4, contrast)(A, B)
    assert_gradients_equal(gradients_of(model), expected)
