"""Features of frozen towers on disk: the same embeddings, computed once, and never those of another tower."""

import logging

import pytest
import torch

from tests.pictures import make_picture
from vembed.data.batches.augment import image_transform
from vembed.data.hashing import content_hash
from vembed.errors import DataError, ModelError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.retrieval.feature_cache import FeatureCache
from vembed.types import EncodedItem, ImageSource, Item

TEXTS = ("a red circle", "zebra", "two blue squares on a green field", "small")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        make_picture(number).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def items(files):
    sources = [ImageSource(path=path) for path in files]
    return [
        Item(text=TEXTS[0]),
        Item(images=(sources[0],)),
        Item(text=TEXTS[1], images=(sources[1],)),
        Item(images=(sources[2], sources[3])),
        Item(text=TEXTS[2], images=(sources[0], sources[4])),
    ]


@pytest.fixture
def composed(bert_folder, timm_folder):
    def load(**settings):
        names = {"text_model_name": bert_folder, "image_model_name": timm_folder, "projection_dim": 12}
        return VisualRetrievalModel.from_pretrained(settings=ModelSettings(**{**names, **settings}))

    return load


def both(items):
    return [(item, side) for item in items for side in ("query", "document")]


def test_features_that_are_known_count_as_no_tokens(composed, items, tmp_path):
    model = composed(freeze=("text", "vision"))
    cache = FeatureCache(model, tmp_path)
    loaded = [model.processor.load(item) for item in items]
    whole = model.processor.count_tokens(loaded, "document")
    assert min(whole) > 0
    cache.fill(both(items[:2]))
    fed = cache.processor
    counted = fed.count_tokens([fed.load(item) for item in items], "document")
    assert counted == [0, 0, *whole[2:]]
    held = EncodedItem(items[1], content_hash(items[1]))
    assert fed.count_tokens([held], "document") == [0]


@pytest.mark.parametrize("frozen", [("text",), ("vision",), ("text", "vision")])
def test_embeddings_are_the_same_and_no_fixed_tower_is_run(composed, items, tmp_path, monkeypatch, frozen):
    model = composed(freeze=frozen, query_prompt="find: ")
    expected = {side: model.encode(items, side=side).vectors for side in ("query", "document")}
    cache = FeatureCache(model, tmp_path)
    num_texts, num_pictures = 2 * 3, 5  # a text per prompt
    assert cache.fill(both(items)) == num_texts * ("text" in frozen) + num_pictures * ("vision" in frozen)
    fed = model.with_processor(cache.processor)

    def never(*_):
        raise AssertionError("a fixed tower was run")

    for tower in frozen:
        monkeypatch.setattr(model.model, "embed_text" if tower == "text" else "embed_images", never)
    for side, vectors in expected.items():
        assert torch.allclose(fed.encode(items, side=side).vectors, vectors, atol=1e-5)


def test_pictures_with_features_are_not_decoded(composed, items, tmp_path, monkeypatch):
    model = composed(freeze=("vision",))
    cache = FeatureCache(model, tmp_path)
    cache.fill(both(items))
    monkeypatch.setattr(type(model.processor), "read_picture", lambda *_: pytest.fail("decoded"))
    model.with_processor(cache.processor).encode(items)


def test_a_second_cache_finds_what_the_first_wrote_and_computes_the_rest(composed, items, tmp_path):
    assert FeatureCache(composed(freeze=("vision",)), tmp_path).fill(both(items[:2])) == 1
    again = FeatureCache(composed(freeze=("vision",)), tmp_path)
    assert again.fill(both(items)) == 4
    assert again.fill(both(items)) == 0


def test_another_head_shares_features_and_another_tower_does_not(composed, items, tmp_path, clip_folder):
    FeatureCache(composed(freeze=("vision",)), tmp_path).fill(both(items))
    assert FeatureCache(composed(freeze=("vision",), projection_dim=7), tmp_path).fill(both(items)) == 0
    changed = composed(freeze=("vision",))
    with torch.no_grad():
        next(iter(changed.model.vision_tower.parameters())).add_(1e-3)
    assert FeatureCache(changed, tmp_path).fill(both(items)) == 5
    buffers = dict(changed.model.vision_tower.named_buffers())
    running = next(tensor for name, tensor in buffers.items() if "running_mean" in name)
    running.add_(1)
    assert FeatureCache(changed, tmp_path).fill(both(items)) == 5
    larger = composed(freeze=("vision",), image_size=64)
    assert FeatureCache(larger, tmp_path).fill(both(items)) == 5


def test_a_picture_that_changed_is_encoded_again(composed, items, tmp_path, files):
    model = composed(freeze=("vision",))
    cache = FeatureCache(model, tmp_path)
    cache.fill(both(items))
    make_picture(77).save(files[0])
    try:
        fed = model.with_processor(cache.processor)
        assert torch.allclose(fed.encode(items).vectors, model.encode(items).vectors, atol=1e-5)
        assert cache.fill(both(items)) == 1
    finally:
        make_picture(0).save(files[0])


def test_items_without_features_and_changed_pictures_are_read_as_ever(composed, items, tmp_path):
    model = composed(freeze=("text", "vision"))
    cache = FeatureCache(model, tmp_path)
    cache.fill(both(items[:3]))
    fed = model.with_processor(cache.processor)
    assert torch.allclose(fed.encode(items).vectors, model.encode(items).vectors, atol=1e-5)
    change = image_transform("strong", 0, 1, row="a", slot=0)
    drawn, plain = (one.processor.load(items[1], change, 3) for one in (fed, model))
    assert torch.equal(drawn.images[0]["pixel_values"], plain.images[0]["pixel_values"])
    assert drawn.draw == 3


def test_what_cannot_be_read_is_left_out_and_told_of_where_it_is_used(composed, items, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    bad = [Item(images=(ImageSource(path=str(broken)),), origin="train.jsonl:3")]
    missing = [Item(images=(ImageSource(path=str(tmp_path / "none.png"), origin="train.jsonl:4"),))]
    model = composed(freeze=("vision",))
    cache = FeatureCache(model, tmp_path / "cache")
    assert cache.fill(both([*items, *bad, *missing])) == 5
    fed = model.with_processor(cache.processor)
    for item in (*bad, *missing):
        with pytest.raises(DataError):
            fed.processor.load(item)


def test_texts_that_are_cut_are_told_of_once(composed, tmp_path, caplog):
    model = composed(freeze=("text",), max_length=8)
    with caplog.at_level(logging.WARNING):
        FeatureCache(model, tmp_path).fill([(Item(text="red " * 50), "query")])
    assert "1 texts are longer than max_length" in caplog.text


def test_a_model_without_a_frozen_tower_is_refused(composed, tmp_path):
    for settings in ({}, {"freeze_layers": {"text": 1}}):
        with pytest.raises(ModelError, match="nothing that is frozen can be kept"):
            FeatureCache(composed(**settings), tmp_path)


def test_a_frozen_tower_with_an_exponent_that_learns_is_refused_by_its_reason(composed, tmp_path):
    model = composed(freeze=("vision",))
    model.model.vision_tower.exponent = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ModelError, match="a gem exponent learns within them"):
        FeatureCache(model, tmp_path)
