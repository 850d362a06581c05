"""Random picture changes that can be drawn again."""

import pickle

import numpy as np
import PIL.Image
import pytest

from tests.pictures import make_picture
from vembed.data.batches.augment import ImageAugmentation, image_transform


def _array(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_the_same_key_gives_the_same_change_and_any_other_key_another(strength):
    keys = [
        (seed, epoch, row, slot) for seed in (0, 1) for epoch in (0, 1) for row in ("a:1", "a:2") for slot in (0, 1)
    ]
    changes = [image_transform(strength, seed, epoch, row=row, slot=slot) for seed, epoch, row, slot in keys]
    again = [image_transform(strength, seed, epoch, row=row, slot=slot) for seed, epoch, row, slot in keys]
    assert changes == again
    assert len(set(changes)) == len(keys) == 16


def test_size_and_mode_are_kept_and_the_picture_is_changed_but_recognisable():
    picture = make_picture(1, (64, 48))
    other = _array(make_picture(2, (64, 48)))
    for strength in ("light", "strong"):
        for row in range(10):
            changed = image_transform(strength, 0, 0, row=row, slot=0)(picture)
            assert (changed.size, changed.mode) == ((64, 48), "RGB")
            difference = np.abs(_array(changed) - _array(picture)).mean()
            assert 0.1 < difference < np.abs(other - _array(picture)).mean()


def test_strong_changes_more_than_light():
    picture = make_picture(1)
    mean = {
        strength: np.mean(
            [
                np.abs(_array(image_transform(strength, 0, 0, row=row, slot=0)(picture)) - _array(picture)).mean()
                for row in range(30)
            ]
        )
        for strength in ("light", "strong")
    }
    assert mean["strong"] > 1.5 * mean["light"]


def test_no_change_is_no_change():
    picture = make_picture(3)
    assert np.array_equal(_array(ImageAugmentation()(picture)), _array(picture))


def test_shift_turn_and_scale_move_a_dot_where_they_say():
    picture = PIL.Image.new("RGB", (40, 40), (255, 255, 255))
    picture.paste((0, 0, 0), (29, 19, 32, 22))  # a dot at (30, 20), ten right of the middle

    def dot(change):
        dark = 255 - _array(change(picture)).mean(-1)
        y, x = np.mgrid[:40, :40]
        return (x * dark).sum() / dark.sum() + 0.5, (y * dark).sum() / dark.sum() + 0.5

    assert dot(ImageAugmentation(shift=(0.1, -0.2))) == pytest.approx((34.5, 12.5), abs=0.3)
    assert dot(ImageAugmentation(degrees=90)) == pytest.approx((20.5, 9.5), abs=0.6)
    assert dot(ImageAugmentation(scale=0.5)) == pytest.approx((25.25, 20.25), abs=0.5)


def test_brightness_contrast_and_saturation_do_what_they_say():
    def colour(change, *rgb):
        return change(PIL.Image.new("RGB", (2, 2), rgb)).getpixel((0, 0))

    assert colour(ImageAugmentation(brightness=0.5), 200, 100, 0) == (100, 50, 0)
    assert colour(ImageAugmentation(contrast=0.5), 255, 127, 0) == pytest.approx((191, 127, 64), abs=1)
    assert colour(ImageAugmentation(saturation=0), 100, 100, 100) == (100, 100, 100)
    assert colour(ImageAugmentation(saturation=0), 200, 0, 0) == pytest.approx((60, 60, 60), abs=1)
    assert colour(ImageAugmentation(brightness=2), 200, 100, 0) == (255, 200, 0)


def test_what_comes_into_view_has_the_colour_of_the_corners():
    picture = PIL.Image.new("RGB", (20, 20), (200, 100, 50))
    moved = ImageAugmentation(shift=(0.5, 0.5), degrees=30)(picture)
    assert np.array_equal(_array(moved), _array(picture))


def test_the_change_does_not_touch_its_picture_nor_the_global_generators():
    picture = make_picture(1)
    before = _array(picture).copy()
    state = np.random.get_state()[1].copy()
    image_transform("strong", 0, 0, row=1, slot=0)(picture)
    assert np.array_equal(before, _array(picture))
    assert np.array_equal(state, np.random.get_state()[1])


def test_changes_travel_to_other_processes():
    change = image_transform("light", 0, 0, row=1, slot=0)
    assert pickle.loads(pickle.dumps(change)) == change
