"""Encoding distinct items once gives what encoding each item gives."""

import pytest
import torch

from tests.pictures import write_picture
from vembed.errors import ModelError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.retrieval.encode import Encoding, ItemEncoder, canonical_side
from vembed.types import ImageSource, Item


@pytest.fixture(scope="module")
def clip(clip_folder):
    return VisualRetrievalModel.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    paths = [write_picture(folder / f"{number}.png", number) for number in range(3)]
    texts = ["a red circle", "two", "a red circle", "a much longer text about many things"]
    pictures = [Item(images=(ImageSource(path=path),)) for path in (*paths, paths[0])]
    both = [Item(text="a red circle", images=(ImageSource(path=paths[1]),))]
    return [*(Item(text=text) for text in texts), *pictures, *both]


def test_repeated_items_get_equal_rows_in_order(clip, items):
    vectors = ItemEncoder(clip, Encoding()).encode(items, side="document").vectors
    plain = torch.cat([clip.encode([item]).vectors for item in items])
    torch.testing.assert_close(vectors, plain, rtol=0, atol=1e-6)
    assert torch.equal(vectors[0], vectors[2])
    assert torch.equal(vectors[4], vectors[7])


def test_a_width_keeps_the_first_numbers(clip, items):
    vectors = ItemEncoder(clip, Encoding(width=6)).encode(items, side="document").vectors
    torch.testing.assert_close(vectors, clip.encode(items, width=6).vectors, rtol=0, atol=1e-6)


def test_sides_are_one_without_prompts_and_two_with(clip, clip_folder):
    assert canonical_side(clip.spec, "query") == canonical_side(clip.spec, "document") == "document"
    prompted = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(query_prompt="find: "))
    assert canonical_side(prompted.spec, "query") == "query"
    encoder = ItemEncoder(prompted, Encoding())
    query, document = (encoder.encode([Item(text="a circle")], side=side).vectors for side in ("query", "document"))
    assert not torch.allclose(query, document)


def test_items_of_a_kind_the_model_cannot_read_are_refused(bert_folder, items):
    with pytest.raises(ModelError, match="reads texts only"):
        ItemEncoder(VisualRetrievalModel.from_pretrained(bert_folder), Encoding()).encode(items, side="document")


@pytest.fixture(scope="module")
def colbert(bert_folder):
    return VisualRetrievalModel.from_pretrained(bert_folder, ModelSettings(encoder_mode="colbert", projection_dim=16))


def test_tokens_are_held_without_padding_and_the_whole_is_no_copy(colbert):
    """Of one long document among short ones; in blocks of items, so that nothing is padded to the longest of all."""
    words = [*(f"{number} square" for number in range(40)), "a long text of many words " * 20]
    items = [Item(text=text) for text in words]
    padded = colbert.encode(items)
    encoder = ItemEncoder(colbert, Encoding(batch_size=2))
    tokens = encoder.encode(items, side="document")
    assert tokens.counts.tolist() == padded.mask.sum(dim=1).tolist()
    assert len(tokens.values) == int(padded.mask.sum()) < 0.5 * padded.mask.numel()
    torch.testing.assert_close(tokens.values, padded.vectors[padded.mask], atol=1e-5, rtol=0)
    assert encoder.encode(items, side="document").values.data_ptr() == tokens.values.data_ptr()
    some = encoder.encode([items[40], items[3], items[40]], side="document")
    assert some.counts.tolist() == [int(tokens.counts[40]), int(tokens.counts[3]), int(tokens.counts[40])]
    assert torch.equal(some.values[-int(tokens.counts[40]) :], tokens.values[-int(tokens.counts[40]) :])
