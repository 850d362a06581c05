"""Changes of an emoji: what is asked for is what its target shows, and nothing leads from one split to another."""

from collections import Counter

import pytest

from vembed.demo.changes import changes
from vembed.demo.emoji import load_emoji, load_toned, untoned_key


@pytest.fixture(scope="module")
def toned(demo_packages):
    return load_toned(load_emoji())


@pytest.fixture(scope="module")
def every_change(toned):
    return changes(load_emoji(), toned)


def test_every_toned_emoji_comes_in_five_tones_and_shares_its_concept(toned):
    of_key = {emoji.key: emoji for emoji in load_emoji()}
    assert set(Counter(untoned_key(emoji.key) for emoji in toned).values()) == {5}
    assert len(toned) == 5 * 323
    for emoji in toned:
        base = of_key[untoned_key(emoji.key)]
        assert (emoji.concept, emoji.split, emoji.keywords) == (base.concept, base.split, ())


def test_names_are_unique_with_the_toned_ones(toned):
    names = [emoji.name for emoji in [*load_emoji(), *toned]]
    assert len(set(names)) == len(names)


def test_a_split_has_the_documented_number_of_changes(every_change):
    assert Counter(change.base.split for change in every_change) == {"train": 1186, "val": 424, "test": 381}


def test_a_change_stays_within_a_concept_and_so_within_a_split(every_change):
    assert all(change.base.concept == change.target.concept for change in every_change)
    assert all(change.base.split == change.target.split for change in every_change)


def test_a_text_and_a_base_ask_for_one_target(every_change):
    assert len({(change.base.key, change.text) for change in every_change}) == len(every_change)
    assert all(change.target not in (change.base, *change.others) for change in every_change)


@pytest.mark.parametrize(
    ("base", "text", "target", "others"),
    [
        ("waving hand", "change to dark skin tone", "waving hand dark skin tone", 4),
        ("farmer", "change to woman", "woman farmer", 1),
        ("man farmer", "change to woman", "woman farmer", 0),
        ("person surfing", "change to man", "man surfing", 1),
        ("man", "change to red hair", "man red hair", 5),
        ("person", "change to beard", "person beard", 5),
        ("woman running", "change to facing right", "woman running facing right", 0),
        ("people wrestling", "change to women", "women wrestling", 1),
    ],
)
def test_a_change_is_as_its_text_says(every_change, base, text, target, others):
    [change] = [one for one in every_change if (one.base.name, one.text) == (base, text)]
    assert (change.target.name, len(change.others)) == (target, others)


def test_another_idea_is_no_variant(every_change):
    """ "person with crown" is no other gender of "crown", nor "man dancing" of a dance."""
    assert not [one for one in every_change if one.base.name in ("crown", "dancing", "family")]
