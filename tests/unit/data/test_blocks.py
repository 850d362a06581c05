"""Loading rows: what a worker does and how it sends it."""

import pytest
import torch

from tests.pictures import write_pairs
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data.blocks import BadRow, Block, BlockLoader, PackedBlocks, unpack
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.errors import DataError


@pytest.fixture
def datasets(tmp_path):
    path = write_pairs(tmp_path, 4, "i2i", num_negatives=3)
    return load_datasets(path, DataSettings.model_validate({"retrieval_mode": "i2i"}))


def _items(example):
    return [example.query, *example.positives, *example.negatives]


def test_pictures_are_augmented_anew_for_every_epoch_row_and_slot(datasets):
    loader = BlockLoader(datasets, PlainProcessor(), seed=0, augment="light")
    loaded = [loader.load_example(datasets[0][row], epoch) for row in (0, 1) for epoch in (0, 1)]
    draws = [item.draw for example in loaded for item in _items(example)]
    assert len(set(draws)) == len(draws) == 20
    assert all(0 < draw < 1 << 63 for draw in draws)
    first, later = (example.query.images[0]["pixel_values"] for example in loaded[:2])
    assert not torch.equal(first, later)
    assert loaded[0].query.content_hash == loaded[1].query.content_hash
    again = loader.load_example(datasets[0][0], 1)
    assert torch.equal(again.query.images[0]["pixel_values"], later)


def test_without_augmentation_there_is_no_draw(datasets):
    example = BlockLoader(datasets, PlainProcessor(), seed=0).load_example(datasets[0][0], 0)
    assert [item.draw for item in _items(example)] == [0] * 5


def test_texts_have_no_draw(tmp_path):
    (data,) = load_datasets(write_pairs(tmp_path, 1), DataSettings.model_validate({}))
    example = BlockLoader([data], PlainProcessor(), seed=0, augment="strong").load_example(data[0], 0)
    assert example.query.draw == 0
    assert example.positives[0].draw > 0


def test_negatives_that_are_not_drawn_are_not_decoded(datasets, tmp_path):
    for number in range(4, 16):
        (tmp_path / f"negative_{number}.png").unlink()
    with pytest.raises(DataError, match="no such image file"):
        BlockLoader(datasets, PlainProcessor(), seed=0).load_example(datasets[0][0], 0)
    example = BlockLoader(datasets, PlainProcessor(), seed=0, num_hard_negatives=0).load_example(datasets[0][0], 0)
    assert example.negatives == ()


def test_a_block_that_was_sent_is_the_block_that_was_loaded(datasets, tmp_path):
    (tmp_path / "positive_2.png").unlink()
    loader = BlockLoader(datasets, PlainProcessor(), seed=0, augment="light")
    block = Block(0, (3, 2, 0), epoch=1)
    received, rows = unpack(PackedBlocks(loader)[block])
    assert received == block
    assert isinstance(rows[1], BadRow)
    assert rows[1].origin.endswith(":3")
    for row, number in ((rows[0], 3), (rows[2], 0)):
        expected = loader.load_example(datasets[0][number], 1)
        assert row.origin == expected.origin
        for one, other in zip(_items(row), _items(expected), strict=True):
            assert (one.content_hash, one.draw, one.text) == (other.content_hash, other.draw, other.text)
            pixels, same = one.images[0]["pixel_values"], other.images[0]["pixel_values"]
            assert pixels.dtype == torch.uint8
            assert torch.equal(pixels, same)
            pixels[:] = 0  # memory of its own, that may be written to
