"""What `prepare` writes is complete, in the plain public format, and written once."""

import json

import numpy as np
import pytest
from PIL import Image

from vembed.demo.files import prepare

pytestmark = pytest.mark.slow  # all pictures are drawn first


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_list(value):
    return value if isinstance(value, list) else [value]


def texts_of(row):
    query = list(row["query"].values()) if isinstance(row["query"], dict) else [row["query"]]
    return [*query, *as_list(row["positive"]), *row.get("negatives", [])]


def plain(sets):
    """The sets whose queries are a text or a picture, not both."""
    return {name: path for name, path in sets.items() if not name.startswith(("m2", "change"))}


def test_a_gallery_holds_one_document_per_held_out_emoji(demo_files):
    def gallery_sizes(sets):
        return {
            mode: len({text for row in rows_of(path) for text in as_list(row["positive"])})
            for mode, path in sets.items()
        }

    assert gallery_sizes(plain(demo_files.test)) == {"t2i": 281, "i2t": 281, "i2i": 281, "t2t": 281}
    # One emoji of the validation split has no keywords.
    assert gallery_sizes(plain(demo_files.val)) == {"t2i": 191, "i2t": 191, "i2i": 191, "t2t": 190}


def test_a_held_out_set_has_one_row_per_query(demo_files):
    for path in [*plain(demo_files.val).values(), *plain(demo_files.test).values()]:
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
        "changes_to_pictures": 2368,
        "changes_to_names": 2372,
    }


def test_no_held_out_emoji_is_trained_on(demo_files):
    trained = {row["group"] for path in plain(demo_files.train).values() for row in rows_of(path)}
    held_out = {
        row["group"]
        for sets in (plain(demo_files.val), plain(demo_files.test))
        for path in sets.values()
        for row in rows_of(path)
    }
    assert (len(trained), len(held_out), trained & held_out) == (1434, 472, set())


def test_no_split_holds_a_picture_of_another(demo_files):
    """By the key in a picture's name, toned ones among them."""
    pictures = [
        {
            text.rsplit("/", 1)[1]
            for path in sets.values()
            for row in rows_of(path)
            for text in texts_of(row)
            if text.startswith("images/")
        }
        for sets in (demo_files.train, demo_files.val, demo_files.test)
    ]
    assert [len(part) for part in pictures] == [1434 + 985, 191 + 320, 281 + 310]
    assert len(set.union(*pictures)) == sum(len(part) for part in pictures)


def test_a_composed_set_searches_every_tone_and_the_query_picture_itself(demo_files):
    rows = rows_of(demo_files.test["m2i"])
    documents = {text for row in rows for text in [row["positive"], *row["negatives"]]}
    assert (len(rows), len(rows_of(demo_files.test["m2t"])), len(documents)) == (761, 762, 756)
    assert all(row["query"]["image"] == row["negatives"][0] for row in rows)
    toned = [row for row in rows if row["query"]["text"].endswith("skin tone")]
    assert len(toned) == 620
    assert all(len(row["negatives"]) == 5 for row in toned)


def test_a_change_that_a_vendor_does_not_show_is_no_row(demo_files):
    """OpenMoji draws "people wrestling" as "men wrestling", so only one of the two ways to ask for them is there."""
    asked = [row["query"] for row in rows_of(demo_files.test["m2i"]) if row["positive"].endswith("1f93c-200d-2642.png")]
    assert sorted(query["image"] for query in asked) == [
        "images/openmoji/1f93c-200d-2640.png",
        "images/twemoji/1f93c-200d-2640.png",
        "images/twemoji/1f93c.png",
    ]


def test_every_picture_that_a_row_names_is_there_and_is_no_blank(demo_files):
    named = set()
    for path in [*demo_files.train.values(), *demo_files.val.values(), *demo_files.test.values()]:
        for row in rows_of(path):
            named |= {path.parent / text for text in texts_of(row) if text.startswith("images/")}
    assert len(named) == 2 * (1906 + 1615)
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


def test_a_composed_row_is_as_documented(demo_files):
    wanted = {"text": "change to dark skin tone", "image": "images/twemoji/1f3c2.png"}
    [row] = [row for row in rows_of(demo_files.train["changes_to_pictures"]) if row["query"] == wanted]
    assert row["positive"] == "images/twemoji/1f3c2-1f3ff.png"
    assert sorted(row["negatives"]) == [
        "images/twemoji/1f3c2-1f3fb.png",
        "images/twemoji/1f3c2-1f3fc.png",
        "images/twemoji/1f3c2-1f3fd.png",
        "images/twemoji/1f3c2-1f3fe.png",
        "images/twemoji/1f3c2.png",
    ]
    [row] = [row for row in rows_of(demo_files.train["changes_to_names"]) if row["query"] == wanted]
    assert (row["positive"], row["negatives"][0]) == ("snowboarder dark skin tone", "snowboarder")


def test_a_second_call_reuses_what_is_there(demo_files, demo_folder):
    written = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*") if path.is_file()}
    assert len(written) > 7000
    assert prepare(demo_folder) == demo_files
    assert {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*") if path.is_file()} == written


def test_a_broken_off_call_is_done_again_and_writes_the_same_bytes(demo_files, demo_folder, tmp_path):
    unfinished = tmp_path / demo_files.test["t2i"].relative_to(demo_folder)
    unfinished.parent.mkdir()
    unfinished.write_text("half a li")
    prepare(tmp_path)
    names = [path.relative_to(demo_folder) for path in demo_folder.rglob("*") if path.is_file()]
    assert len(names) > 7000
    assert [name for name in names if (tmp_path / name).read_bytes() != (demo_folder / name).read_bytes()] == []
