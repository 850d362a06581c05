"""Encoding many items: the same vectors whatever the batch size, in the order that they came in."""

import time

import pytest
import torch
from torch.nn import functional

from vembed.errors import DataError, ModelError, UsageError
from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.model import encoding
from vembed.types import ImageSource, Item


@pytest.mark.parametrize("name", ["clip", "composed", "timm"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_does_not_change_a_vector(name, batch_size, model_of, items_for):
    model = model_of(name)
    items = items_for(model)
    expected = torch.cat([model.encode([item]).vectors for item in items])
    assert torch.allclose(model.encode(items, batch_size=batch_size).vectors, expected, atol=1e-5)


def test_texts_are_tokenised_once_and_embedded_beside_texts_of_their_length(fresh, texts, monkeypatch):
    monkeypatch.setattr(encoding, "_CPU_TOKENS", 24)
    model, items = fresh("bert"), [Item(text=text) for text in texts * 3]
    batches, prepared = [], []
    model.model.register_forward_pre_hook(lambda module, args: batches.append(args[0].tensors["attention_mask"].values))
    prepare = model.processor.prepare
    monkeypatch.setattr(model.processor, "prepare", lambda items, side: prepared.extend(items) or prepare(items, side))
    model.encode(items, batch_size=4)
    assert len(prepared) == len(items)
    assert sum(len(mask) for mask in batches) == len(items)
    for mask in batches:
        assert mask.any(dim=0).all(), "a column of padding only"
        assert len(mask) <= 4
        assert mask.numel() <= 24 or len(mask) == 1
    waste = 1 - sum(int(mask.sum()) for mask in batches) / sum(mask.numel() for mask in batches)
    assert waste < 0.1


@pytest.mark.parametrize("name", ["bert", "sentence", "clip", "siglip", "colpali", "colbert", "colbert_modern"])
def test_what_is_cut_off_a_window_is_what_the_row_alone_has_not(name, model_of):
    processor, items = model_of(name).processor, [Item(text="red"), Item(text="two blue squares on a green field" * 2)]
    window, alone = processor.prepare(items, "query"), processor.prepare(items[:1], "query")
    cut = processor.without_padding(take_rows(window, 0, 1))
    assert cut.tensors.keys() == alone.tensors.keys()
    for tensor, ragged in alone.tensors.items():
        assert torch.equal(cut.tensors[tensor].values, ragged.values), tensor
    if name != "siglip":  # which reads its padding
        width = alone.tensors["input_ids"].values.shape[1]
        assert processor.num_tokens(window)[0] == width < window.tensors["input_ids"].values.shape[1]


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


@pytest.mark.parametrize("name", ["clip", "colbert"])
def test_a_side_that_there_is_not_is_refused(name, model_of):
    with pytest.raises(UsageError, match="side 'qurey' is unknown; known are: query, document"):
        model_of(name).encode([Item(text="red")], side="qurey")


def test_an_error_of_the_model_does_not_wait_for_pictures_that_were_asked_for(fresh, pictures, monkeypatch):
    model, loaded = fresh("clip"), []
    load = model.processor.load

    def slow_load(item, transform=None, draw=0):
        loaded.append(item)
        time.sleep(0.05)
        return load(item, transform, draw)

    def fail(_module, _inputs):
        raise IndexError("out of range in self")

    monkeypatch.setattr(model.processor, "load", slow_load)
    model.model.register_forward_pre_hook(fail)
    with pytest.raises(IndexError, match="out of range in self"):
        model.encode([Item(images=(ImageSource(pil=pictures[0]),))] * 200, batch_size=64)
    assert 64 <= len(loaded) < 64 + 32  # the first window, and of the second what threads were at
