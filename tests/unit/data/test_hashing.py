"""Equal content, equal key."""

import subprocess
import sys

import pytest

from tests.pictures import make_picture, write_picture
from vembed.data.hashing import content_hash, image_hash, mixed_hash, text_hash
from vembed.errors import DataError
from vembed.types import ImageSource, Item


def test_keys_are_the_same_in_another_process():
    code = "from vembed.data.hashing import text_hash; print(text_hash('über/日本'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == text_hash("über/日本")


def test_keys_fit_int64_and_are_never_negative():
    keys = [text_hash(str(number)) for number in range(2000)]
    assert len(set(keys)) == 2000
    assert all(0 <= key < 1 << 63 for key in keys)
    assert max(keys) > 1 << 62


def test_a_text_hash_takes_the_text_exactly():
    assert text_hash("A cat") != text_hash("a cat")
    assert text_hash("\ud800") != text_hash("\ud801")


def test_the_same_picture_at_two_paths_has_one_key(tmp_path):
    paths = [write_picture(tmp_path / name, seed=1) for name in ("a.png", "b.png")]
    other = write_picture(tmp_path / "c.png", seed=2)
    data = (tmp_path / "a.png").read_bytes()
    keys = [content_hash(Item(images=(ImageSource(path=path),))) for path in paths]
    assert keys[0] == keys[1] == content_hash(Item(images=(ImageSource(data=data, origin="elsewhere"),)))
    assert keys[0] != content_hash(Item(images=(ImageSource(path=other),)))


def test_a_file_that_changes_gets_a_new_key(tmp_path):
    path = write_picture(tmp_path / "a.png", seed=1)
    first = image_hash(ImageSource(path=path))
    write_picture(path, seed=2)
    assert image_hash(ImageSource(path=path)) != first


def test_pil_pictures_are_keyed_by_their_pixels():
    one, same, other = (ImageSource(pil=make_picture(seed)) for seed in (1, 1, 2))
    assert image_hash(one) == image_hash(same) != image_hash(other)
    grey = ImageSource(pil=make_picture(1).convert("L"))
    assert image_hash(grey) != image_hash(one)


def test_text_picture_and_both_have_different_keys(tmp_path):
    source = ImageSource(path=write_picture(tmp_path / "a.png", seed=1))
    items = [
        Item(text="a"),
        Item(images=(source,)),
        Item(text="a", images=(source,)),
        Item(text="b", images=(source,)),
        Item(text="a", images=(source, source)),
        Item(text=""),
    ]
    assert len({content_hash(item) for item in items}) == len(items)


def test_mixed_hash_keeps_numbers_and_texts_apart():
    assert mixed_hash("1", 2) != mixed_hash(1, "2")


def test_a_missing_file_cannot_be_hashed(tmp_path):
    with pytest.raises(DataError, match=r"x:3: .*no such image file"):
        image_hash(ImageSource(path=str(tmp_path / "no.png"), origin="x:3"))
    with pytest.raises(DataError, match="x:3"):
        image_hash(ImageSource(path=str(tmp_path), origin="x:3"))
