"""Frozen towers: their features stand in for what they read, and change nothing."""

import pytest
import torch

from tests.gradients import assert_gradients_equal
from tests.unit.model.embedding import embed
from vembed.grad_cache.cachex.tree_utils import num_rows, select_rows, take_rows
from vembed.model.network.freezing import keeps_states, with_fixed_features
from vembed.types import ImageSource, Item


def rows_of(texts, pictures):
    """Text rows, picture rows, rows of both and of two pictures, mixed."""
    images = [ImageSource(pil=picture) for picture in pictures]
    return [
        Item(text=texts[0]),
        Item(images=(images[0],)),
        Item(text=texts[1], images=(images[1],)),
        Item(images=(images[2], images[3])),
        Item(text=texts[2]),
        Item(text=texts[4], images=(images[4], images[5])),
    ]


def finished(model, items):
    return model.processor.finish(model.processor.prepare(items, "query"))


@pytest.mark.parametrize(
    ("name", "frozen", "read", "given"),
    [
        ("composed", ("vision",), "input_ids", "image_features"),
        ("composed", ("text",), "pixel_values", "text_features"),
        ("composed", ("text", "vision"), None, "image_features"),
        ("clip", ("text",), "pixel_values", "text_features"),
        ("siglip", ("vision",), "input_ids", "image_features"),
    ],
)
def test_features_of_frozen_towers_give_the_same_embeddings_and_gradients(
    fresh, texts, pictures, name, frozen, read, given
):
    model = fresh(name, freeze=frozen)
    model.model.train()
    inputs = finished(model, rows_of(texts, pictures))
    shortened = with_fixed_features(model.model, inputs)
    assert given in shortened.tensors
    assert not shortened.tensors[given].values.requires_grad
    assert {"input_ids", "attention_mask", "pixel_values"} & set(shortened.tensors) <= {read, "attention_mask"} - {None}
    results = []
    for one in (inputs, shortened):
        torch.manual_seed(0)  # dropout of the tower that learns
        model.model.zero_grad()
        vectors = model.model(one).vectors
        (vectors * torch.arange(vectors.numel()).view_as(vectors)).sum().backward()
        gradients = [p.grad.flatten() for p in model.model.parameters() if p.grad is not None]
        results.append((vectors.detach(), torch.cat(gradients)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


def test_rows_with_features_and_rows_without_stand_in_one_batch(fresh, texts, pictures):
    model = fresh("composed", freeze=("text", "vision"))
    items = rows_of(texts, pictures)
    inputs = finished(model, items)
    whole = model.model(inputs).vectors
    known = with_fixed_features(model.model, inputs)
    other = finished(model, items[3:])
    tensors = {name: torch_cat(take_rows(known, 0, 3).tensors[name], 3, after=True) for name in known.tensors}
    tensors |= {name: torch_cat(ragged, 3, after=False) for name, ragged in other.tensors.items()}
    mixed = type(inputs)(6, tensors)
    assert torch.allclose(model.model(mixed).vectors, whole, atol=1e-6)
    again = with_fixed_features(model.model, mixed)
    assert set(again.tensors) == {"text_features", "image_features"}
    assert torch.allclose(model.model(again).vectors, whole, atol=1e-6)


def torch_cat(ragged, rows, *, after):
    """The ragged tensor with so many rows of nothing after or before its own."""
    nothing = torch.zeros(rows, dtype=torch.int64)
    counts = [ragged.counts, nothing] if after else [nothing, ragged.counts]
    return type(ragged)(ragged.values, torch.cat(counts))


def test_features_are_cut_and_chosen_as_rows(fresh, texts, pictures):
    model = fresh("composed", freeze=("vision",))
    inputs = with_fixed_features(model.model, finished(model, rows_of(texts, pictures)))
    assert num_rows(inputs) == 6
    whole = model.model(inputs).vectors
    order = torch.tensor([5, 3, 0])
    assert torch.allclose(model.model(select_rows(inputs, order)).vectors, whole[order], atol=1e-6)


def test_a_tower_that_learns_and_one_with_a_learned_exponent_are_not_fixed(fresh, texts, pictures):
    learning = fresh("composed")
    inputs = finished(learning, rows_of(texts, pictures))
    assert with_fixed_features(learning.model, inputs).tensors == inputs.tensors
    assert fresh("clip", freeze=("text",)).model.fixed_towers() == ("text",)
    assert fresh("composed", freeze=("text", "vision")).model.fixed_towers() == ("text", "vision")
    composed = fresh("composed", freeze=("vision",)).model
    composed.vision_tower.exponent = torch.nn.Parameter(torch.ones(1))
    assert composed.fixed_towers() == ()


def test_the_exponent_of_a_frozen_vision_encoder_learns_as_without_fixed_features(fresh, pictures):
    model = fresh("vit", freeze=("vision",), pooling="gem")
    model.model.train()
    inputs = finished(model, [Item(images=(ImageSource(pil=picture),)) for picture in pictures])
    assert model.model.fixed_towers() == ()
    gradients = []
    for one in (inputs, with_fixed_features(model.model, inputs)):
        model.model.zero_grad()
        vectors = model.model(one).vectors
        (vectors * torch.arange(vectors.numel()).view_as(vectors)).sum().backward()
        gradients.append(model.model.vision_tower.exponent.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0].abs() > 1e-3


@pytest.mark.parametrize("name", ["colbert", "colbert_llama"])
def test_a_frozen_encoder_of_token_vectors_gives_them_for_the_tokens_that_fill_queries_up_too(fresh, texts, name):
    model = fresh(name, freeze=("text",), num_query_tokens=14)
    model.model.train()
    assert keeps_states(model.model)
    inputs = model.processor.prepare([Item(text=text) for text in (texts[0], texts[4], texts[1])], "query")
    filled = inputs.tensors["scored"].values & ~inputs.tensors["attention_mask"].values.bool()
    assert filled.any()  # no other token reads them
    shortened = with_fixed_features(model.model, inputs)
    assert inputs.tensors.keys() - shortened.tensors.keys() == {"input_ids"}
    assert with_fixed_features(model.model, shortened).tensors == shortened.tensors
    (vectors, gradients), (expected, expected_gradients) = embed(model, shortened), embed(model, inputs)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert_gradients_equal(gradients, expected_gradients)
    model.model.backbone.forward = None
    assert torch.equal(model.model(shortened).vectors, vectors)


def test_first_layers_that_are_frozen_leave_the_inputs_as_they_are(fresh, texts, pictures):
    for name in ("clip", "composed", "colbert", "qwen2_vl"):
        model = fresh(name, freeze_layers={"text": 1})
        assert not keeps_states(model.model)
        items = [item for item in rows_of(texts, pictures) if name != "colbert" or not item.images]
        inputs = finished(model, items)
        assert with_fixed_features(model.model, inputs).tensors == inputs.tensors
