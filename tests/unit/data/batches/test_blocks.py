"""Loading rows: what a worker does and how it sends it."""

import pickle
import shutil
from dataclasses import replace

import pytest
import torch

from tests.pictures import make_picture, write_jsonl, write_pairs
from tests.unit.data.plain_processor import PlainProcessor
from vembed.data.batches.blocks import Block, BlockLoader, pack, unpack
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings
from vembed.data.validation import BadRow
from vembed.errors import DataError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.types import EncodedItem, ImageSource, Item, LoadedItem


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
    received, rows = unpack(pack(loader, block))
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six files that are smaller than what CLIP's tower reads of them, one row each."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        make_picture(number, (90, 70)).save(folder / f"{number}.jpg", quality=40)
    write_jsonl(
        folder / "d.jsonl", [{"query": f"{number}.jpg", "positive": f"{5 - number}.jpg"} for number in range(6)]
    )
    return folder


def _photo_loader(folder, processor, **options):
    path = str(folder / "d.jsonl")
    return BlockLoader(load_datasets(path, DataSettings(retrieval_mode="i2i")), processor, seed=0, **options)


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_held_as_files_pictures_are_decoded_to_the_same_pixels_each_time(photos, clip_folder, augment):
    processor = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(image_size=64)).processor
    block = Block(0, tuple(range(6)), epoch=1)
    in_pixels = _photo_loader(photos, processor, augment=augment).load(block)
    in_files = _photo_loader(photos, processor, augment=augment, image_host_cache="encoded").load(block)
    for pixels, files in zip(in_pixels, in_files, strict=True):
        for decoded, encoded in zip(_items(pixels), _items(files), strict=True):
            assert isinstance(encoded, EncodedItem)
            assert len(encoded.images[0].data) < decoded.images[0]["pixel_values"].nbytes
            assert (encoded.content_hash, encoded.draw) == (decoded.content_hash, decoded.draw)
            for _ in range(2):
                again = processor.prepare([encoded], "query").tensors["pixel_values"].values[0]
                assert torch.equal(again, decoded.images[0]["pixel_values"])


def test_what_was_held_as_files_is_read_from_no_file_any_more(photos, clip_folder, tmp_path):
    processor = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(image_size=64)).processor
    folder = tmp_path / "gone"
    shutil.copytree(photos, folder)
    row = _photo_loader(folder, processor, image_host_cache="encoded").load(Block(0, (2,), 0))[0]
    before = processor.prepare([row.query], "query").tensors["pixel_values"].values
    shutil.rmtree(folder)
    _, (sent,) = unpack(pickle.dumps((Block(0, (2,), 0), [row])))
    assert torch.equal(processor.prepare([sent.query], "query").tensors["pixel_values"].values, before)
    broken = ImageSource(data=sent.query.images[0].data[:200], origin=sent.query.images[0].origin)
    with pytest.raises(DataError, match=r"d\.jsonl:3: query: .*gone.2\.jpg: the image is cut off"):
        processor.prepare([replace(sent.query, item=Item(images=(broken,)))], "query")


def test_pixels_are_held_where_they_are_smaller_than_the_file(datasets):
    loader = BlockLoader(datasets, PlainProcessor(), seed=0, image_host_cache="encoded")
    example = loader.load_example(datasets[0][0], 0)
    assert all(isinstance(item, LoadedItem) for item in _items(example))


def test_a_picture_that_cannot_be_decoded_is_a_bad_row_however_it_is_held(photos, clip_folder, tmp_path):
    processor = VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(image_size=64)).processor
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-300])
    reasons = []
    for kind in ("uint8", "encoded"):
        rows = _photo_loader(folder, processor, image_host_cache=kind).load(Block(0, tuple(range(6)), 0))
        bad = [row for row in rows if isinstance(row, BadRow)]
        assert [row.origin.rsplit(":", 1)[1] for row in bad] == ["2", "5"]
        reasons.append([row.reason for row in bad])
    assert reasons[0] == reasons[1]
    assert "cut off or broken" in reasons[0][0]


def test_texts_are_held_alike(tmp_path):
    (data,) = load_datasets(write_pairs(tmp_path, 1, "t2t"), DataSettings(retrieval_mode="t2t"))
    example = BlockLoader([data], PlainProcessor(), seed=0, image_host_cache="encoded").load_example(data[0], 0)
    assert all(isinstance(item, LoadedItem) for item in _items(example))
