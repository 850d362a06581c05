"""Encoding many items: the same vectors whatever the batch size, in the order that they came in."""

import pytest
import torch
from torch.nn import functional

from vembed.errors import DataError, ModelError
from vembed.types import ImageSource, Item


@pytest.mark.parametrize("name", ["clip", "composed", "timm"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_does_not_change_a_vector(name, batch_size, model_of, items_for):
    model = model_of(name)
    items = items_for(model)
    expected = torch.cat([model.encode([item]).vectors for item in items])
    assert torch.allclose(model.encode(items, batch_size=batch_size).vectors, expected, atol=1e-5)


def test_encoding_leaves_the_model_in_the_mode_it_was_in(fresh, items_for):
    model = fresh("bert")
    model.model.train()
    trained = model.encode(items_for(model)).vectors
    assert model.model.training
    model.model.eval()
    assert torch.equal(model.encode(items_for(model)).vectors, trained)
    assert not model.model.training


def test_vectors_can_be_used_in_a_graph_afterwards(model_of):
    vectors = model_of("bert").encode([Item(text="red"), Item(text="blue")]).vectors
    assert not vectors.is_inference()
    assert vectors.dtype == torch.float32


def test_a_width_keeps_the_first_numbers_and_normalises_again(model_of, items_for):
    model = model_of("clip")
    whole = model.encode(items_for(model)).vectors
    short = model.encode(items_for(model), width=5).vectors
    assert torch.allclose(short, functional.normalize(whole[:, :5], dim=-1), atol=1e-6)
    for width in (0, 17):
        with pytest.raises(ModelError, match=f"width {width}: this model's embeddings have 16 numbers"):
            model.encode(items_for(model), width=width)


def test_tower_features_are_what_the_towers_give_by_themselves(fresh, model_of, texts, pictures):
    composed = fresh("composed", projection_dim=7)
    items = [Item(text=text) for text in texts]
    assert torch.allclose(
        composed.encode(items, features="tower").vectors, model_of("bert").encode(items).vectors, atol=1e-6
    )
    items = [Item(images=(ImageSource(pil=image),)) for image in pictures]
    assert torch.allclose(
        composed.encode(items, features="tower").vectors, model_of("timm").encode(items).vectors, atol=1e-6
    )
    assert composed.encode(items).vectors.shape == (len(items), 7)
    assert torch.equal(model_of("clip").encode(items, features="tower").vectors, model_of("clip").encode(items).vectors)


def test_tower_features_of_unequal_width_are_not_put_into_one_table(fresh, pictures):
    model = fresh("composed")
    image = ImageSource(pil=pictures[0])
    with pytest.raises(ModelError, match="differ in width"):
        model.encode([Item(text="red"), Item(images=(image,))], features="tower")
    with pytest.raises(ModelError, match="differ in width"):
        model.encode([Item(text="red", images=(image,))], features="tower")


def test_an_image_that_cannot_be_read_is_named(model_of):
    missing = Item(images=(ImageSource(path="/nowhere/a.png", origin="pairs.jsonl:7"),), origin="pairs.jsonl:7")
    with pytest.raises(DataError, match=r"pairs\.jsonl:7"):
        model_of("clip").encode([Item(text="red"), missing])


def test_an_image_over_the_pixel_limit_is_refused(model_of, pictures):
    processor = model_of("clip").processor.with_image_limit(100)
    with pytest.raises(DataError, match="max_image_pixels = 100"):
        processor.load(Item(images=(ImageSource(pil=pictures[0]),)))
    assert model_of("clip").processor.load(Item(images=(ImageSource(pil=pictures[0]),))).images


def test_a_transform_changes_the_picture_before_it_is_resized(model_of, pictures):
    item = Item(images=(ImageSource(pil=pictures[0]),))
    processor = model_of("clip").processor
    turned = processor.load(item, lambda image: image.rotate(90, expand=True), 5)
    expected = processor.load(Item(images=(ImageSource(pil=pictures[0].rotate(90, expand=True)),)))
    assert torch.equal(turned.images[0]["pixel_values"], expected.images[0]["pixel_values"])
    assert (turned.draw, turned.content_hash) == (5, processor.load(item).content_hash)


def test_no_items_give_an_empty_table(model_of):
    assert model_of("clip").encode([]).vectors.shape == (0, 16)
