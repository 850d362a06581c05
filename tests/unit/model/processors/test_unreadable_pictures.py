"""A picture that a model's processor cannot read is a bad row, of every family, and found before it is in a batch."""

import re

import numpy as np
import PIL.Image
import pytest
import torch

from tests.cases import CASES, quick_and_slow
from tests.pictures import make_picture
from vembed.errors import DataError
from vembed.model.processors.base import ItemProcessor
from vembed.types import EncodedItem, ImageSource, Item

READERS = [name for name, case in CASES.items() if case.image]
SHAPES = [(1, 1), (2, 1), (3, 3), (230, 1), (1, 230), (2300, 10), (10, 2300), (4000, 1), (1, 4000)]
MODES = ["1", "L", "LA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBA", "RGBX", "I;16"]
WHERE = "train.jsonl:17: positive"


def _pictures():
    for number, size in enumerate(SHAPES):
        yield f"{size[0]} x {size[1]}", make_picture(number, size)
    for mode in MODES[:-1]:
        yield mode, make_picture(1).convert(mode)
    yield MODES[-1], PIL.Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))


def _item(*pictures):
    sources = tuple(ImageSource(pil=picture, origin=WHERE) for picture in pictures)
    return Item(images=sources, origin="train.jsonl:17")


@pytest.mark.parametrize("name", quick_and_slow(READERS))
def test_a_picture_of_any_shape_or_mode_is_read_or_refused_with_its_row(name, model_of):
    model, num_refused = model_of(name), 0
    for kind, picture in _pictures():
        for item in (_item(picture), _item(make_picture(0), picture)):
            refusal = _refusal(lambda item=item: model.processor.load(item))  # in a worker, before there is a batch
            if refusal is None:
                assert torch.isfinite(model.encode([item]).vectors).all(), kind
                continue
            num_refused += 1
            assert re.match(rf"{WHERE}: (or another .* images: )?an image cannot be read by", refusal), kind
            assert kind not in MODES
    bounded = "qwen" in name  # its processors refuse what is over 200:1
    assert num_refused == (12 if bounded else 0)


@pytest.mark.parametrize("error", [ValueError, TypeError, ZeroDivisionError, RuntimeError, MemoryError, RecursionError])
@pytest.mark.parametrize("name", ["clip", "timm", "qwen2_vl", "smolvlm", "colpali", "colqwen2", "colqwen"])
def test_whatever_an_image_processor_raises_is_a_data_error(name, error, model_of, monkeypatch):
    processor: ItemProcessor = model_of(name).processor

    def fail(*_):
        raise error("no such shape")

    monkeypatch.setattr(type(processor), "read_pictures", fail)
    encoded = EncodedItem(_item(make_picture(0)), 7)
    for read in (
        lambda: processor.load(_item(make_picture(0))),
        lambda: processor.prepare([_item(make_picture(0))], "document"),
        lambda: processor.prepare([encoded], "document"),
    ):
        with pytest.raises(DataError, match=rf"{WHERE}: an image cannot be read by this model: no such shape"):
            read()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "smolvlm", "colqwen", "colqwen2", "colmodernvbert"])
def test_pictures_that_leave_no_room_in_max_length_are_refused_when_loaded_and_no_others(name, fresh, model_of):
    item = _item(make_picture(0, (60, 90)))
    loaded = model_of(name).processor.load(item)
    num_tokens = int(model_of(name).processor.num_tokens(model_of(name).processor.prepare([loaded], "document"))[0])
    found = set()
    for length in {num_tokens // 5, num_tokens // 2, *range(num_tokens - 9, num_tokens + 2)}:
        processor = fresh(name, max_length=length).processor
        in_batch = _refusal(lambda processor=processor: processor.prepare([loaded], "document"))
        assert _refusal(lambda processor=processor: processor.load(item)) == in_batch, length
        found.add(in_batch is not None)
    assert found == {True, False}


def _refusal(read):
    try:
        read()
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["clip", "timm", "convnext"])
def test_a_thin_picture_is_not_blown_up_to_gigabytes(name, fresh):
    processor = fresh(name, image_size=224).processor
    for size in ((60_000, 1), (1, 60_000)):
        with pytest.raises(
            DataError, match=rf"{WHERE}: an image cannot be read by this model: of {size[0]} x {size[1]}"
        ):
            processor.load(_item(PIL.Image.new("RGB", size)))
    assert processor.load(_item(PIL.Image.new("RGB", (300, 10)))).images


def test_what_is_scaled_to_a_square_may_be_thin(fresh):
    for name, side in (("vit", 224), ("convnext", 384)):
        processor = fresh(name, image_size=side).processor
        assert processor.load(_item(PIL.Image.new("RGB", (6_000, 1)))).images
