"""How a side is divided into chunks, by rows and by tokens."""

import logging
from collections.abc import Sequence

import pytest
import torch

from tests.pictures import make_picture
from vembed.data.collators.default import Collator
from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import concat_rows, num_rows, select_rows, take_rows
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.factory import LossFactory
from vembed.losses.settings import LossSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.training.gradient_cache_trainer import GradientCacheTrainer
from vembed.training.step.chunking import Chunking, SidePartition, chunk_side
from vembed.types import Embeddings, ImageSource, Inputs, Item, ItemRows, LoadedExample

TEXTS = ["a", "red " * 9, "blue circle", "green " * 9, "", "small " * 4]


@pytest.fixture(scope="module")
def processor(clip_folder):
    return VisualRetrievalModel.from_pretrained(clip_folder).processor


def rows_of(processor, items: Sequence[Item], side="query") -> ItemRows:
    return ItemRows(tuple(processor.load(item) for item in items), side)


def texts(processor) -> ItemRows:
    return rows_of(processor, [Item(text=text) for text in TEXTS])


def test_item_rows_are_counted_sliced_chosen_and_joined_with_their_items(processor):
    rows = texts(processor)
    assert num_rows(rows) == num_rows([rows, torch.zeros(6, 1)]) == 6
    assert take_rows(rows, 1, 3).items == rows.items[1:3]
    assert select_rows(rows, torch.tensor([4, 0, 4])).items == (rows.items[4], rows.items[0], rows.items[4])
    joined = concat_rows([take_rows(rows, 0, 2), take_rows(rows, 2, 6)])
    assert (joined.items, joined.side) == (rows.items, "query")
    with pytest.raises(UsageError, match="different prompts"):
        concat_rows([rows, ItemRows(rows.items, "document")])


def test_chunks_of_rows_take_them_in_order(processor):
    rows = texts(processor)
    assert [list(chunk) for chunk in chunk_side(rows, processor, Chunking(chunk_size=4)).rows] == [
        [0, 1, 2, 3],
        [4, 5],
    ]
    assert chunk_side(rows, processor, Chunking()).chunks == [rows]
    assert chunk_side(rows, processor, Chunking(chunk_size=6)).chunks == [rows]


def test_chunks_of_tokens_hold_rows_alike_in_length_and_stay_within_the_budget(processor):
    rows = texts(processor)
    counts = processor.count_tokens(rows.items, "query")
    assert counts == [len(processor.prepare([item], "query").tensors["input_ids"].values[0]) for item in rows.items]
    partition = chunk_side(rows, processor, Chunking(chunk_tokens=24))
    assert sorted(row for chunk in partition.rows for row in chunk) == list(range(6))
    assert len(partition.rows) == 2
    assert all(list(chunk) == sorted(chunk) for chunk in partition.rows)
    padded = [processor.prepare(chunk.items, "query").tensors["input_ids"].values for chunk in partition.chunks]
    assert all(tokens.numel() <= 24 for tokens in padded)
    assert sum(tokens.numel() for tokens in padded) < 6 * max(counts)


def test_embeddings_come_back_into_the_order_of_the_side():
    side = Inputs(5, {})
    partition = SidePartition(side, [[1, 3], [0], [2, 4]])
    vectors = torch.tensor([[1.0], [3.0], [0.0], [2.0], [4.0]])
    assert partition.restore_order(Embeddings(vectors)).vectors.flatten().tolist() == [0, 1, 2, 3, 4]
    ordered = Embeddings(vectors)
    assert SidePartition(side, [range(2), range(2, 5)]).restore_order(ordered) is ordered


def test_a_row_over_the_budget_is_a_chunk_by_itself(processor):
    rows = texts(processor)
    partition = chunk_side(rows, processor, Chunking(chunk_tokens=8))
    counts = processor.count_tokens(rows.items, "query")
    assert all(len(chunk) == 1 or len(chunk) * max(counts[row] for row in chunk) <= 8 for chunk in partition.rows)
    assert partition.max_row_tokens == max(counts) > 8


def test_the_log_names_rows_over_the_budget_once(clip_folder, caplog):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    load = model.processor.load
    texts = [(load(Item(text=text)), load(Item(text=f"{text} b"))) for text in TEXTS]
    batch = Collator()([LoadedExample(query, (document,)) for query, document in texts])
    settings = GradCacheSettings(gradient_cache_chunk_tokens=8)
    trainer = GradientCacheTrainer(model.model, model.processor, LossFactory.create(LossSettings()), settings)
    with caplog.at_level(logging.WARNING, logger="vembed"):
        for _ in range(2):
            trainer.step(batch)
    told = [message for message in caplog.messages if "over gradient_cache_chunk_tokens: 8" in message]
    assert len(told) == 1
    assert "max_length" in told[0]


def test_a_side_without_rows_is_one_chunk(processor):
    nothing = ItemRows((), "query")
    for chosen in (Chunking(chunk_size=32), Chunking(chunk_tokens=8), Chunking()):
        assert [num_rows(chunk) for chunk in chunk_side(nothing, processor, chosen).chunks] == [0]


def test_inputs_that_are_padded_already_cannot_be_chunked_by_tokens(processor):
    inputs = processor.prepare([Item(text="a"), Item(text="b")], "query")
    with pytest.raises(UsageError, match="gradient_cache_chunk_tokens: rows that are prepared already"):
        chunk_side(inputs, processor, Chunking(chunk_tokens=8))


def test_patches_of_pictures_count_as_tokens(processor):
    image = ImageSource(pil=make_picture(0))
    items = [Item(text="a"), Item(images=(image,)), Item(text="a", images=(image, image)), Item(images=(image, image))]
    text, one, both, two = processor.count_tokens(rows_of(processor, items).items, "query")
    pixels = processor.load(items[1]).images[0]["pixel_values"]
    assert one == (pixels.shape[1] // 8) * (pixels.shape[2] // 8), "the tiny CLIP cuts patches of 8 pixels"
    assert (two, both) == (2 * one, text + 2 * one)
