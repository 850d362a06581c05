"""Which queries are shown, and with what."""

import base64
import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from tests.pictures import make_picture, write_picture
from tests.unit.evaluation.made import make_comparison, make_result, make_set
from vembed.errors import DataError
from vembed.evaluation.comparison import compare
from vembed.evaluation.rendering.shown_queries import choose_queries, choose_shown_queries
from vembed.evaluation.rendering.thumbnails import thumbnail_uri
from vembed.types import ImageSource, Item


def test_wins_losses_and_random_queries_are_mixed():
    gains = np.array([0.0, 0.9, -0.5, 0.1, 0.0, -0.9, 0.3, 0.0, 0.0])
    chosen = choose_queries(gains, 6)
    assert {number for number, kind in chosen.items() if kind == "win"} == {1, 6}
    assert {number for number, kind in chosen.items() if kind == "loss"} == {5, 2}
    assert sum(kind == "random" for kind in chosen.values()) == 2
    assert choose_queries(gains, 6) == chosen


def test_without_wins_and_losses_all_are_random():
    assert set(choose_queries(np.zeros(20), 5).values()) == {"random"}
    assert len(choose_queries(np.zeros(3), 5)) == 3
    assert choose_queries(np.zeros(3), 0) == {}


def test_the_biggest_win_is_the_first_exhibit():
    one = make_set(60)
    comparison = make_comparison([one], 3.0, 0.2)
    base, tuned = (result.first_ranks for result in comparison.sets[0].results)
    first = choose_shown_queries(comparison, 3)[0]
    best = int(np.argmax(1 / tuned - 1 / base))
    assert first.kind == "win"
    assert first.query.text == one.queries[best].text
    assert first.wanted.text == one.documents[best].text
    assert [found.first_rank for found in first.results] == [base[best], tuned[best]]


def test_results_show_the_top_five_and_mark_the_relevant():
    one = make_set(60)
    comparison = make_comparison([one], 3.0, 0.2)
    for shown in choose_shown_queries(comparison, 6):
        for found in shown.results:
            assert len(found.items) == 5
            relevant = [number for number, item in enumerate(found.items, start=1) if item.relevant]
            assert relevant == ([found.first_rank] if found.first_rank <= 5 else [])
            assert all(item.text == shown.wanted.text for item in found.items if item.relevant)


def test_every_set_shows_as_many():
    comparison = make_comparison([make_set(30, name=name) for name in "abc"])
    shown = [one.set_name for one in choose_shown_queries(comparison, 12)]
    assert shown == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_one_model_shows_random_queries():
    one = make_set(30)
    shown_queries = choose_shown_queries(compare([one], {"model": make_result([one], 1.0)}, samples=0), 4)
    assert {shown.kind for shown in shown_queries} == {"random"}
    assert {len(shown.results) for shown in shown_queries} == {1}


def test_a_small_gallery_shows_what_it_has():
    one = make_set(3)
    (shown, *_) = choose_shown_queries(make_comparison([one]), 1)
    assert len(shown.results[0].items) == 3


@pytest.mark.parametrize(("name", "size"), [("photo.jpg", (900, 400)), ("small.png", (30, 40))])
def test_thumbnails_are_small_pictures_of_the_same_shape(tmp_path, name, size):
    uri = thumbnail_uri(ImageSource(path=write_picture(tmp_path / name, 1, size)))
    kind, _, data = uri.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    assert max(picture.size) == min(128, max(size))
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.03)


def test_pictures_become_thumbnails_in_the_gallery():
    one = make_set(4, mode="t2i")
    documents = tuple(Item(images=(ImageSource(pil=make_picture(number)),)) for number in range(4))
    comparison = make_comparison([replace(one, documents=documents)])
    for shown in choose_shown_queries(comparison, 4):
        assert shown.query.images == ()
        assert all(item.images[0].startswith("data:image/") for found in shown.results for item in found.items)


def test_a_picture_that_has_gone_is_named(tmp_path):
    one = make_set(4, mode="t2i")
    gone = Item(images=(ImageSource(path=str(tmp_path / "gone.png"), origin="rows.jsonl:1"),))
    comparison = make_comparison([replace(one, documents=(gone,) * 4)])
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        choose_shown_queries(comparison, 1)
