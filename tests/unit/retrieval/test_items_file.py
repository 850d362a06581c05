"""Which items a folder or file holds. No value's looks decide what it is."""

import re
from pathlib import Path

import PIL.Image
import pytest

from tests.pictures import write_csv, write_jsonl, write_picture
from vembed.data.decoding import READ_FORMATS
from vembed.data.images import read_image
from vembed.errors import DataError
from vembed.retrieval.items_file import open_items


def read_items(path):
    """All items of a folder or file."""
    items = open_items(path)
    return [items[number] for number in range(len(items))]


def test_a_folder_holds_its_images_at_any_depth_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp"):
        write_picture(tmp_path / name, 1)
    (tmp_path / "notes.txt").write_text("not an image")
    items = read_items(tmp_path)
    assert [one.name for one in items] == ["a.PNG", "b.jpg", "deep/er/c.webp"]
    assert items[2].item.images[0].path == str(tmp_path / "deep" / "er" / "c.webp")
    assert {one.item.text for one in items} == {None}


def test_a_folder_holds_the_pictures_of_every_format_that_is_read(tmp_path):
    PIL.Image.init()
    formats = {ending: name for ending, name in PIL.Image.registered_extensions().items() if name in READ_FORMATS}
    formats |= {".mpo": "MPO", ".pjpeg": "JPEG", ".pjp": "JPEG"}
    formats.pop(".pfm")  # of floats
    assert len(formats) > 20
    for ending, name in formats.items():
        PIL.Image.new("L" if name in {"PPM", "JPEG2000"} else "RGB", (8, 8)).save(tmp_path / f"a{ending}", format=name)
    items = read_items(tmp_path)
    assert {Path(one.name).suffix for one in items} == set(formats)
    for one in items:
        assert read_image(one.item.images[0], max_pixels=100).size == (8, 8)


def test_files_of_a_folder_that_are_no_images_by_their_names_are_counted_once(tmp_path, caplog):
    write_picture(tmp_path / "a.png", 1)
    names = ("b.tga", "deep/c.TGA", "d", "deep/e.txt", ".hidden", ".git/config", "deep/.f.tga", ".cache/x/g.tga")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [one.name for one in read_items(tmp_path)] == ["a.png"]
    (record,) = caplog.records
    assert "4 files are not embedded, for want of an image's ending: 2 .tga, 1 without an ending, 1 .txt" in (
        record.getMessage()
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"no file in it has the ending .*; it holds 2 \.tga, 1 without an ending, 1 \.txt"
    ):
        read_items(tmp_path)


def test_a_folder_of_pictures_alone_has_nothing_to_say(tmp_path, caplog):
    write_picture(tmp_path / "a.png", 1)
    (tmp_path / ".DS_Store").touch()
    read_items(tmp_path)
    assert not caplog.records


def test_a_text_file_holds_one_text_per_line_whatever_it_looks_like(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    (tmp_path / "texts.txt").write_bytes('\ufeffa.png\r\n/abs/path.jpg\n日本 {"text": 1}'.encode())
    items = read_items(tmp_path / "texts.txt")
    assert [(one.name, one.item.text, one.item.images) for one in items] == [
        ("1", "a.png", ()),
        ("2", "/abs/path.jpg", ()),
        ("3", '日本 {"text": 1}', ()),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"alpha\rbeta\rgamma", "carriage returns alone"),
        (b"alpha\rbeta\rgamma\r\n", "carriage returns alone"),
        (b"alpha\rbeta\rgamma\n", "carriage returns alone"),
        ("alpha\nbeta".encode("utf-16-le"), "full of zero bytes"),
        ("alpha\nbeta".encode("utf-16"), "the file is UTF-16"),
        ("alpha\nbeta".encode("utf-32"), "the file is UTF-32"),
        (b"one\ncaf\xe9\n", r"texts\.txt:2: not UTF-8"),
        (b"PK\x03\x04 and more", "a zip archive"),
        (b"one text\nsecond line of\0binary\n", r"texts\.txt:2: .*null character"),
    ],
)
def test_a_text_file_that_is_none_is_refused(tmp_path, data, words):
    (tmp_path / "texts.txt").write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_items(tmp_path / "texts.txt")


@pytest.mark.parametrize("data", [b"alpha", b"alpha\r", b"alpha\r\n", b"al\rpha\nbeta\r\n"])
def test_a_text_file_may_end_its_lines_in_any_living_way(tmp_path, data):
    (tmp_path / "texts.txt").write_bytes(data)
    assert read_items(tmp_path / "texts.txt")[0].item.text.strip().replace("\r", "") == "alpha"


def test_rows_hold_text_images_or_both(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    rows = [
        {"id": "first", "text": "a.png"},
        {"image": "a.png"},
        {"id": 7, "text": "both", "image": ["a.png", "a.png"]},
    ]
    items = read_items(write_path(tmp_path, rows))
    assert [(one.name, one.item.text, len(one.item.images)) for one in items] == [
        ("first", "a.png", 0),
        ("2", None, 1),
        ("7", "both", 2),
    ]
    assert items[1].item.images[0].path == str(tmp_path / "a.png")
    assert items[1].item.origin.endswith("rows.jsonl:2")


def test_tables_are_read_too(tmp_path):
    path = write_csv(tmp_path / "rows.csv", [{"id": "007", "text": "one"}, {"id": "8", "text": "two"}])
    assert [(one.name, one.item.text) for one in read_items(Path(path))] == [("007", "one"), ("8", "two")]


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_a_number_that_is_another_rows_own_id_is_refused(tmp_path, write):
    path = tmp_path / f"rows.{'csv' if write is write_csv else 'jsonl'}"
    write(path, [{"id": given, "text": "a"} for given in ("7", "", "5", "", "2")])
    items = open_items(path)
    numbers = ("3", "5") if write is write_csv else ("2", "4")  # the header is line 1
    assert [items[1].name, items[3].name] == list(numbers)
    with pytest.raises(DataError, match=f":{'5' if write is write_csv else '2'}: the row has no id, and its number"):
        items.check_ids()


def test_ids_that_rows_give_twice_are_counted(tmp_path, caplog):
    rows = [{"id": given, "text": "a"} for given in ("x", "y", "x", 3, "3", "x", "z")]
    open_items(write_path(tmp_path, rows)).check_ids()
    (message,) = caplog.messages
    path = tmp_path / "rows.jsonl"
    assert f"{path}: 3 rows have the id of a row above, as x of {path}:1 and {path}:3" in message


def test_ids_that_differ_and_rows_without_any_have_nothing_to_say(tmp_path, caplog):
    for ids in (("a", "b", "3"), ("", "", ""), ("9", "", "x")):
        open_items(write_path(tmp_path, [{"id": given, "text": "a"} for given in ids])).check_ids()
    open_items(write_path(tmp_path, [{"text": "a"}, {"id": 1, "text": "b"}][:1])).check_ids()
    assert not caplog.messages


def test_a_row_that_cannot_be_read_does_not_hide_what_ids_lack(tmp_path):
    path = write_path(tmp_path, [{"id": 2, "text": "a"}, {"text": "b"}, "{broken"])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row has no id"):
        open_items(path).check_ids()


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
@pytest.mark.parametrize(
    ("columns", "near"),
    [
        (("text", "images", "Image", "price"), "images, Image are not read; .* called image"),
        (("image", "Text", "price"), "Text is not read; .* called text"),
        (("text", "image_path", "price"), "image_path is not read; .* called image"),
        (("text", "image", "image_2", "price"), "image_2 is not read; .* called image"),
        (("text", "ID", "price"), "ID is not read; .* called id"),
        (("id", "text", "image", "price"), None),
    ],
)
def test_columns_that_are_not_read_are_told_with_a_warning_of_near_names(tmp_path, caplog, write, columns, near):
    path = Path(write(tmp_path / f"rows.{'csv' if write is write_csv else 'jsonl'}", [dict.fromkeys(columns, "a")] * 3))
    with caplog.at_level("INFO", "vembed"):
        open_items(path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (near is not None)
    assert all(re.search(near, warning) for warning in warnings)
    unread = ", ".join(name for name in columns if name not in {"text", "image", "id"})
    assert f"{path}: columns that are not read: {unread}" in caplog.messages


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, r"rows\.jsonl:2: needs a column text or image; the row has caption"),
        ({"text": ""}, r"rows\.jsonl:2: needs a column text or image"),
        ({"text": 3}, r"rows\.jsonl:2: text: should be a text, but is a number"),
        ({"image": 3}, r"rows\.jsonl:2: image"),
        ("{broken", r"rows\.jsonl:2"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_items(write_path(tmp_path, [{"text": "good"}, row]))


def test_an_empty_line_is_refused(tmp_path):
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    with pytest.raises(DataError, match=r"texts\.txt:2: the line is empty"):
        read_items(tmp_path / "texts.txt")


def test_nothing_to_embed_is_refused(tmp_path):
    with pytest.raises(DataError, match="no file in it has the ending of an image"):
        read_items(tmp_path)
    (tmp_path / "texts.txt").write_text("")
    with pytest.raises(DataError, match="nothing to embed"):
        read_items(tmp_path / "texts.txt")
    with pytest.raises(DataError, match="no such file"):
        read_items(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="missing"):
        read_items(tmp_path / "missing.txt")


def write_path(tmp_path, rows):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    return tmp_path / "rows.jsonl"
