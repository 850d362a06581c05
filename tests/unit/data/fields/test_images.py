"""Cells into images: every form that is taken, and every one that is refused."""

import base64

import numpy as np
import pytest

from tests.pictures import make_picture, write_picture
from vembed.data.fields.images import ImageCellParser
from vembed.data.images import read_image
from vembed.errors import DataError

WHERE = "train.jsonl:17: positive"


@pytest.fixture
def picture_file(tmp_path):
    write_picture(tmp_path / "pictures" / "a.png", seed=1)
    return tmp_path / "pictures" / "a.png"


def _same_picture(source):
    return np.array_equal(np.asarray(read_image(source, max_pixels=10_000)), np.asarray(make_picture(1)))


def test_a_relative_path_starts_at_the_folder(picture_file):
    source = ImageCellParser(str(picture_file.parent.parent))("pictures/a.png", WHERE)
    assert source.path == str(picture_file)
    assert source.origin == WHERE


def test_an_absolute_path_is_taken_as_it_is(picture_file):
    assert ImageCellParser("/somewhere/else")(str(picture_file), WHERE).path == str(picture_file)


def test_bytes_base64_data_uri_feature_and_pil_are_images(picture_file):
    data = picture_file.read_bytes()
    text = base64.b64encode(data).decode()
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    cells = [
        data,
        bytearray(data),
        memoryview(data),
        text,
        wrapped,
        f"data:image/png;base64,{text}",
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": "pictures/a.png"},
        {"path": "pictures/a.png"},
        make_picture(1),
    ]
    reader = ImageCellParser(str(picture_file.parent.parent))
    assert [_same_picture(reader(cell, WHERE)) for cell in cells] == [True] * 10


@pytest.mark.parametrize("ending", [".jpg", ".gif", ".webp", ".bmp", ".tif"])
def test_base64_of_every_usual_format_is_recognised(tmp_path, ending):
    path = write_picture(tmp_path / f"a{ending}", seed=1)
    data = (tmp_path / f"a{ending}").read_bytes()
    assert ImageCellParser()(base64.b64encode(data).decode(), WHERE).data == data
    assert path.endswith(ending)


@pytest.mark.parametrize(
    "path", ["iVBORw0KGgo.png", "R0lGODlhAQAB", "/9j/a/b", "a" * 64, "b/" * 40 + "x", "photos/2020/IMG"]
)
def test_a_path_is_not_mistaken_for_base64(path):
    assert ImageCellParser()(path, WHERE).path == path


def test_base64_that_breaks_off_is_refused_and_not_taken_for_a_path(picture_file):
    text = base64.b64encode(picture_file.read_bytes()).decode()[:99]
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: the base64 text is broken"):
        ImageCellParser()(text, WHERE)


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png,abc", "data:image/png;base64,@@@@"])
def test_a_broken_data_uri_is_refused(uri):
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: .*(data: URI|base64)"):
        ImageCellParser()(uri, WHERE)


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "HTTP://example.org/a", "s3://bucket/a.png", "file:///a.png"]
)
def test_urls_are_refused(url):
    with pytest.raises(DataError, match="is a URL; download the image first"):
        ImageCellParser()(url, WHERE)


@pytest.mark.parametrize(
    "cell",
    [
        *(None, "", "  ", [], float("nan"), 3, True, {"bytes": None, "path": None}, {"a": 1}, {}, object()),
        *([["a.png"]], ["a.png"], [make_picture(1)], (make_picture(1),), np.zeros((4, 4, 3)), {"image": "a.png"}),
        *({"path": {"path": "a.png"}}, {"path": ["a.png"]}, {"bytes": {"bytes": b"a"}}, {"bytes": "iVBORw0KGgo="}),
        *({"bytes": 10**15}, {"bytes": 5}, {"bytes": [1, 2, 300]}, {"bytes": ["a"]}, {"bytes": 1.5, "path": "a.png"}),
    ],
)
def test_what_is_no_image_is_refused(cell):
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: "):
        ImageCellParser()(cell, WHERE)


def test_a_confined_reader_refuses_every_way_out(tmp_path):
    outside = write_picture(tmp_path / "outside" / "a.png", seed=1)
    root = tmp_path / "root"
    write_picture(root / "in" / "a.png", seed=1)
    (root / "link.png").symlink_to(outside)
    (root / "folder_link").symlink_to(tmp_path / "outside")
    (tmp_path / "root2").mkdir()
    write_picture(tmp_path / "root2" / "a.png", seed=1)
    ways_out = [
        outside,
        "../outside/a.png",
        "in/../../outside/a.png",
        "link.png",
        "folder_link/a.png",
        "../root2/a.png",
    ]
    confined, free = ImageCellParser(str(root), confined=True), ImageCellParser(str(root))
    for path in ways_out:
        with pytest.raises(DataError, match=r"leads out of image_root .*allow_paths_outside_image_root: true"):
            confined(path, WHERE)
        assert _same_picture(free(path, WHERE))
    inside = ["in/a.png", "in/../in/a.png", str(root / "in" / "a.png")]
    assert [_same_picture(confined(path, WHERE)) for path in inside] == [True] * 3


def test_a_null_byte_in_a_path_is_a_data_error():
    with pytest.raises(DataError):
        ImageCellParser("/tmp", confined=True)("a\0b.png", WHERE)
    with pytest.raises(DataError):
        read_image(ImageCellParser("/tmp")("a\0b.png", WHERE), max_pixels=10)


def test_a_long_name_is_confined_like_every_other():
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: .*leads out of image_root") as caught:
        ImageCellParser("/tmp", confined=True)("../" + "a" * 100_000, WHERE)
    assert len(str(caught.value)) < 600
    long = ImageCellParser("/tmp", confined=True)("a" * 100_000, WHERE)
    with pytest.raises(
        DataError, match=r"train\.jsonl:17: positive: .*the image file cannot be read: File name too long"
    ):
        read_image(long, max_pixels=10)


@pytest.mark.parametrize("start", [b"\x89PMG", b"%PDF", b"\0\0"])
def test_base64_with_a_broken_start_is_a_bad_row(picture_file, start):
    text = base64.b64encode(start + picture_file.read_bytes()[4:]).decode()
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: "):
        read_image(ImageCellParser(str(picture_file.parent))(text, WHERE), max_pixels=10_000)
