"""When the rows of a chunk are prepared: texts once per step, pictures whenever the chunk is run."""

from collections.abc import Sequence

import pytest
import torch

from tests.pictures import make_picture
from vembed.grad_cache.cachex.tree_utils import take_rows
from vembed.model.modeling import VisualRetrievalModel
from vembed.training.step.chunk_reader import ChunkReader
from vembed.types import ImageSource, Inputs, Item, ItemRows

TEXTS = ["a", "red " * 9, "blue circle", "green " * 9, "", "small " * 4]


@pytest.fixture(scope="module")
def processor(clip_folder):
    return VisualRetrievalModel.from_pretrained(clip_folder).processor


def rows_of(processor, items: Sequence[Item]) -> ItemRows:
    return ItemRows(tuple(processor.load(item) for item in items), "query")


def test_texts_are_prepared_once_and_pictures_each_time(processor):
    image = ImageSource(pil=make_picture(0))
    words, pictures = (
        rows_of(processor, [Item(text=text) for text in TEXTS]),
        rows_of(processor, [Item(images=(image,)), Item(text="a")]),
    )
    reader = ChunkReader(processor)
    first, again = reader(words), reader(words)
    assert first is again
    shown, shown_again = reader(pictures), reader(pictures)
    assert shown is not shown_again
    assert torch.equal(shown.tensors["pixel_values"].values, shown_again.tensors["pixel_values"].values)
    assert isinstance(shown, Inputs)
    assert reader(first) is first


def test_texts_that_are_cut_are_counted_once(processor):
    rows = rows_of(processor, [Item(text="a " * 100), Item(text="a"), Item(text="b " * 100)])
    reader = ChunkReader(processor)
    for _ in range(2):
        for chunk in (take_rows(rows, 0, 2), take_rows(rows, 2, 3)):
            reader(chunk)
    assert reader.num_truncated == 4, "chunks that are not the same object count apart"
    reader = ChunkReader(processor)
    chunks = [take_rows(rows, 0, 2), take_rows(rows, 2, 3)]
    for chunk in chunks * 2:
        reader(chunk)
    assert reader.num_truncated == 2
