"""The emoji of the demo: how many, what they are called, and that nothing leaks between splits."""

from collections import Counter

import pytest

from vembed.demo.emoji import key_of, load_emoji


@pytest.fixture(scope="module")
def emojis(demo_packages):
    return load_emoji()


def test_the_splits_have_the_documented_sizes(emojis):
    assert Counter(emoji.split for emoji in emojis) == {"train": 1434, "val": 191, "test": 281}


def test_no_concept_is_in_two_splits(emojis):
    splits_of = {}
    for emoji in emojis:
        splits_of.setdefault(emoji.concept, set()).add(emoji.split)
    assert len(splits_of) > 1000
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_keys_and_names_are_unique(emojis):
    assert len({emoji.key for emoji in emojis}) == len({emoji.name for emoji in emojis}) == len(emojis)


def test_an_emoji_is_read_as_its_packages_describe_it(emojis):
    [grinning] = [emoji for emoji in emojis if emoji.key == "1f600"]
    assert (grinning.characters, grinning.name) == ("\U0001f600", "grinning face")
    assert grinning.keywords[:3] == ("face", "smile", "happy")


def test_keywords_never_hold_the_name(emojis):
    assert not [emoji for emoji in emojis if emoji.name in emoji.keywords]
    assert sum(bool(emoji.keywords) for emoji in emojis) == 1903


def test_no_emoji_has_a_skin_tone(emojis):
    tones = {f"1f3f{digit}" for digit in "bcdef"}
    assert not [emoji for emoji in emojis if tones & set(emoji.key.split("-"))]


def test_a_key_leaves_the_presentation_out():
    assert key_of("1\ufe0f\u20e3") == "31-20e3"
