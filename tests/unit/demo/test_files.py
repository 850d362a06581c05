"""What `prepare` writes is complete, in the plain public format, and written once."""

import json

import numpy as np
from PIL import Image

from vembed.demo.files import prepare


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_a_gallery_holds_one_document_per_held_out_emoji(demo_files):
    def gallery_sizes(sets):
        return {
            mode: len({text for row in rows_of(path) for text in as_list(row["positive"])})
            for mode, path in sets.items()
        }

    assert gallery_sizes(demo_files.test) == {"t2i": 281, "i2t": 281, "i2i": 281, "t2t": 281}
    # One emoji of the validation split has no keywords.
    assert gallery_sizes(demo_files.val) == {"t2i": 191, "i2t": 191, "i2i": 191, "t2t": 190}


def test_a_held_out_set_has_one_row_per_query(demo_files):
    for path in [*demo_files.val.values(), *demo_files.test.values()]:
        rows = rows_of(path)
        assert len({row["query"] for row in rows}) == len({row["group"] for row in rows}) == len(rows) >= 187, path


def test_emoji_that_share_their_keywords_share_a_row(demo_files):
    [row] = [row for row in rows_of(demo_files.val["t2t"]) if isinstance(row["positive"], list)][:1]
    assert len(row["positive"]) == 2


def test_training_sets_hold_every_training_emoji(demo_files):
    sizes = {name: len(rows_of(path)) for name, path in demo_files.train.items()}
    assert sizes == {
        "names_to_pictures": 1434,
        "keywords_to_pictures": 1406,
        "keywords_to_names": 1406,
        "pictures_to_pictures": 1434,
    }


def test_no_held_out_emoji_is_trained_on(demo_files):
    trained = {row["group"] for path in demo_files.train.values() for row in rows_of(path)}
    held_out = {
        row["group"] for sets in (demo_files.val, demo_files.test) for path in sets.values() for row in rows_of(path)
    }
    assert (len(trained), len(held_out), trained & held_out) == (1434, 472, set())


def test_every_picture_that_a_row_names_is_there_and_is_no_blank(demo_files):
    named = set()
    for path in [*demo_files.train.values(), *demo_files.val.values(), *demo_files.test.values()]:
        for row in rows_of(path):
            texts = as_list(row["query"]) + as_list(row["positive"])
            named |= {path.parent / text for text in texts if text.startswith("images/")}
    assert len(named) == 2 * 1906
    for file in named:
        with Image.open(file) as picture:
            assert (picture.size, picture.mode) == ((72, 72), "RGB")
            assert np.asarray(picture).std() > 2, file


def test_a_row_is_as_documented(demo_files):
    [row] = [row for row in rows_of(demo_files.train["names_to_pictures"]) if row["group"] == "1f601"]
    assert row == {
        "query": "beaming face with smiling eyes",
        "positive": ["images/twemoji/1f601.png", "images/openmoji/1f601.png"],
        "group": "1f601",
    }


def test_a_second_call_reuses_what_is_there(demo_files, demo_folder):
    written = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*") if path.is_file()}
    assert len(written) > 3800
    assert prepare(demo_folder) == demo_files
    assert {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*") if path.is_file()} == written


def test_a_broken_off_call_is_done_again_and_writes_the_same_bytes(demo_files, demo_folder, tmp_path):
    unfinished = tmp_path / demo_files.test["t2i"].relative_to(demo_folder)
    unfinished.parent.mkdir()
    unfinished.write_text("half a li")
    prepare(tmp_path)
    names = [path.relative_to(demo_folder) for path in demo_folder.rglob("*") if path.is_file()]
    assert len(names) > 3800
    assert [name for name in names if (tmp_path / name).read_bytes() != (demo_folder / name).read_bytes()] == []
