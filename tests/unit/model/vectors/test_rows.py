"""An item's vector is its own: it depends neither on the batch, the order, the neighbours, nor the padding."""

import json
import pickle

import pytest
import torch
from torch.nn import functional

from vembed.errors import DataError, ModelError
from vembed.grad_cache.cachex.tree_utils import concat_rows, select_rows, take_rows
from vembed.model.modeling import VisualRetrievalModel
from vembed.types import ImageSource, Item


def embed(model, items):
    inputs = model.processor.prepare(items, "document")
    with torch.no_grad():
        return model.model(model.processor.finish(inputs)).vectors


@pytest.mark.parametrize("name", ["clip", "composed"])
def test_any_chunk_of_the_inputs_gives_the_same_rows(name, model_of, items_for):
    model = model_of(name)
    items = items_for(model)
    inputs = model.processor.finish(model.processor.prepare(items, "document"))
    with torch.no_grad():
        whole = model.model(inputs).vectors
        for size in (1, 3, 7):
            chunks = [model.model(take_rows(inputs, start, start + size)) for start in range(0, len(items), size)]
            assert torch.allclose(concat_rows(chunks).vectors, whole, atol=1e-5)
        index = torch.tensor([4, 13, 0])
        assert torch.allclose(model.model(select_rows(inputs, index)).vectors, whole[index], atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "composed"])
def test_text_and_image_give_the_normalised_mean_of_their_unit_vectors(name, model_of, pictures):
    model = model_of(name)
    first, second = ImageSource(pil=pictures[0]), ImageSource(pil=pictures[1])
    text, image, both = embed(
        model, [Item(text="a red circle"), Item(images=(first,)), Item(text="a red circle", images=(first,))]
    )
    assert torch.allclose(both, functional.normalize((text + image) / 2, dim=0), atol=1e-6)
    other, two, three = embed(
        model, [Item(images=(second,)), Item(images=(first, second)), Item(text="a red circle", images=(first, second))]
    )
    mean = functional.normalize(image + other, dim=0)
    assert torch.allclose(two, mean, atol=1e-6)
    assert torch.allclose(three, functional.normalize(text + mean, dim=0), atol=1e-6)


def test_vectors_that_are_not_normalised_do_not_depend_on_neighbours_with_several_images(tmp_path, model_of, pictures):
    model_of("vit").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "vembed_config.json").read_text(encoding="utf-8"))
    saved["spec"]["normalize"] = False
    (tmp_path / "vembed_config.json").write_text(json.dumps(saved), encoding="utf-8")
    model = VisualRetrievalModel.from_pretrained(str(tmp_path))
    first, second = (Item(images=(ImageSource(pil=picture),)) for picture in pictures[:2])
    both = Item(images=first.images + second.images)
    alone = embed(model, [first, second])
    beside = embed(model, [first, second, both])
    assert torch.allclose(beside[:2], alone, atol=1e-6)
    assert torch.allclose(beside[2], alone.mean(dim=0), atol=1e-6)


def test_no_rows_give_no_vectors(model_of):
    inputs = model_of("clip").processor.prepare([], "query")
    assert model_of("clip").model(inputs).vectors.shape == (0, 16)


@pytest.mark.parametrize("name", ["bert", "naflex_vision", "colpali", "colbert", "colqwen", "qwen2_vl"])
@pytest.mark.parametrize("side", ["query", "document"])
def test_no_rows_and_an_empty_chunk_give_no_vectors(name, side, model_of, items_for):
    model = model_of(name)
    inputs = model.processor.prepare(items_for(model), side)
    for empty in (model.processor.prepare([], side), take_rows(inputs, 0, 0)):
        vectors = model.model(model.processor.finish(empty)).vectors
        assert (len(vectors), vectors.shape[-1]) == (0, model.model.dim)


@pytest.mark.parametrize("name", ["clip", "naflex", "colpali", "qwen2_vl"])
def test_a_chunk_of_texts_beside_a_chunk_of_images(name, model_of, pictures):
    model = model_of(name)
    items = [Item(text="a red circle"), Item(images=(ImageSource(pil=pictures[0]),))]
    inputs = model.processor.prepare(items, "document")
    with torch.no_grad():
        chunks = [model.model(model.processor.finish(take_rows(inputs, row, row + 1))).vectors for row in (0, 1)]
    for item, chunk in zip(items, chunks, strict=True):
        assert torch.allclose(chunk, embed(model, [item]), atol=1e-5)


def test_a_row_needs_text_or_image(model_of):
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: an item needs a text, an image, or both"):
        model_of("clip").processor.load(Item(origin="pairs.jsonl:3"))


def test_half_a_character_is_refused(model_of):
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: the text holds half a character"):
        model_of("bert").encode([Item(text="a \ud83d b", origin="pairs.jsonl:3")])


def test_a_processor_can_be_sent_to_another_process(model_of, items_for):
    for name in ("clip", "siglip", "timm", "bert"):
        model = model_of(name)
        sent = pickle.loads(pickle.dumps(model.processor))
        ours, theirs = (p.prepare(items_for(model), "query").tensors for p in (model.processor, sent))
        assert all(torch.equal(ours[key].values, theirs[key].values) for key in ours)


@pytest.mark.parametrize(
    ("name", "can", "cannot"), [("bert", "texts only", "an image"), ("vit", "images only", "a text")]
)
def test_what_a_model_cannot_read_is_refused_with_what_it_can(name, can, cannot, model_of, pictures):
    item = Item(text="a" if name == "vit" else None, images=(ImageSource(pil=pictures[0]),) if name == "bert" else ())
    with pytest.raises(ModelError, match=f"reads {can}; it was given {cannot}"):
        model_of(name).encode([item])


def test_inputs_of_another_model_are_refused_too(model_of, pictures):
    inputs = model_of("vit").processor.prepare([Item(images=(ImageSource(pil=pictures[0]),))], "document")
    with pytest.raises(ModelError, match="reads texts only; it was given an image"):
        model_of("bert").model(model_of("vit").processor.finish(inputs))


@pytest.mark.parametrize("mode", ["t2i", "i2t", "i2i", "m2i", "m2t", "t2m"])
def test_a_text_model_refuses_modes_with_images(mode, model_of):
    with pytest.raises(ModelError, match=f"retrieval_mode {mode} cannot work: a text model reads texts only"):
        model_of("bert").check_mode(mode)


def test_modes_that_work_pass(model_of):
    model_of("bert").check_mode("t2t")
    model_of("vit").check_mode("i2i")
    for mode in ("t2i", "i2t", "i2i", "t2t", "m2i", "m2t", "m2m"):
        model_of("clip").check_mode(mode)
        model_of("composed").check_mode(mode)


def test_prompts_go_before_the_texts_of_their_side(fresh, model_of):
    model = fresh("bert", query_prompt="what colour is ", document_prompt="a photo of ")
    plain = model_of("bert")
    for side, prompt in (("query", "what colour is "), ("document", "a photo of ")):
        ours = model.encode([Item(text="a red circle")], side=side).vectors
        assert torch.equal(ours, plain.encode([Item(text=prompt + "a red circle")], side=side).vectors)
