"""Pictures of rows in memory of their own: the same numbers, and freed when the rows are."""

import torch

from vembed.data.batches.picture_memory import in_pages
from vembed.types import EncodedItem, ImageSource, Item, LoadedExample, LoadedItem


def _loaded(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    images = tuple(
        {
            "pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            "grid": torch.tensor([[seed, 1, 2]]),
            "mask": torch.rand(40, 50, generator=generator),
        }
        for shape in shapes
    )
    return LoadedItem(f"text {seed}", images, seed, draw=3, origin=f"d.jsonl:{seed}")


def _rows():
    shared = _loaded(5, (3, 50, 40))
    encoded = EncodedItem(Item(images=(ImageSource(data=b"x" * 9000),)), 9)
    first = LoadedExample(_loaded(1), (shared, _loaded(2, (3, 64, 64), (7, 999))), (encoded,), group=4, ignored=(8,))
    return [first, LoadedExample(_loaded(3, (3, 64, 64)), (shared,), scores=(0.5,), query_image=_loaded(4, (1, 4097)))]


def _tensors(rows):
    items = [item for row in rows for item in (row.query, *row.positives, *row.negatives, row.query_image)]
    loaded = [item for item in items if isinstance(item, LoadedItem)]
    return [tensor for item in loaded for image in item.images for tensor in image.values()]


def test_rows_hold_the_same_numbers_as_before():
    before, after = _rows(), in_pages(_rows())
    assert len(_tensors(before)) == 18
    for old, new in zip(_tensors(before), _tensors(after), strict=True):
        assert old.dtype == new.dtype
        assert torch.equal(old, new)
    for old, new in zip(before, after, strict=True):
        assert (new.group, new.ignored, new.scores) == (old.group, old.ignored, old.scores)
        names = [(item.text, item.content_hash, item.draw, item.origin) for item in (new.query, *new.positives)]
        assert names == [(item.text, item.content_hash, item.draw, item.origin) for item in (old.query, *old.positives)]
    assert after[0].negatives[0].images == before[0].negatives[0].images


def test_large_tensors_share_pages_and_an_item_of_two_rows_stays_one():
    rows = _rows()
    after = in_pages(rows)
    large = [tensor for tensor in _tensors(after) if tensor.nbytes >= 4096]
    assert len(large) == 12
    assert len({tensor.untyped_storage().data_ptr() for tensor in large}) == 1
    assert all(tensor.data_ptr() % 64 == 0 for tensor in large)
    assert after[0].positives[0] is after[1].positives[0]
    own = {tensor.data_ptr() for tensor in large}
    assert not own & {tensor.data_ptr() for tensor in _tensors(rows)}


def test_rows_without_pictures_stay_as_they_are():
    rows = [LoadedExample(_loaded(1), (_loaded(2),))]
    assert in_pages(rows) == rows
    assert in_pages([]) == []
