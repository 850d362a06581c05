"""Concepts, the ideas that emoji show, and the split of each, so that no idea seen in training is tested."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

Split = Literal["train", "val", "test"]

# Ideas with many near-equal pictures: one concept each, and always trained on, for their members cannot be told apart
# by an unseen name ("ten-thirty", "Peru", "blue square").
_TRAINED_SUBCATEGORIES = {
    "country-flag": "flag",
    "subdivision-flag": "flag",
    "zodiac": "zodiac",
    "keycap": "keycap",
    "alphanum": "letters",
    "arrow": "arrow",
    "geometric": "shape",
}
_TRAINED_NAMES = {
    r"o’clock$|-thirty$": "clock face",
    r"\bmoon\b": "moon",
    r"\bhearts?\b": "heart",
    r"^family\b": "family",
}
_TRAINED = {*_TRAINED_SUBCATEGORIES.values(), *_TRAINED_NAMES.values()}

# Words that tell variants of one idea apart: "woman running facing right" shows running.
_VARIANT = re.compile(
    r"\b(man|men|woman|women|person|people|boy|girl|child|adult|male|female)\b|\b(santa|mrs\.|mx)(?=\s)"
    r"|\b((medium-)?(light|dark)|medium) skin tone\b|\b(red|curly|white|blond) hair\b|\b(bald|beard)\b"
    r"|\bfacing right\b|\band\b"
)
_SYNONYMS = {"older": "old", "princess": "prince", "merman": "mermaid", "merperson": "mermaid"}


def concept_of(name: str, subcategory: str) -> str:
    """The idea that an emoji shows: its English name without tone, gender, hair and direction.

    >>> concept_of("woman running facing right", "person-activity"), concept_of("ten-thirty", "time")
    ('running', 'clock face')
    """
    name = name.lower()
    if subcategory in _TRAINED_SUBCATEGORIES:
        return _TRAINED_SUBCATEGORIES[subcategory]
    for pattern, concept in _TRAINED_NAMES.items():
        if re.search(pattern, name):
            return concept
    words = [_SYNONYMS.get(word, word) for word in _VARIANT.sub(" ", name).split()]
    return " ".join(words) or "person"


def split_concepts(concepts: Iterable[str], sizes: Mapping[Split, int]) -> dict[str, Split]:
    """The split of every concept: in the order of their hash they fill "test", then "val"; the rest is "train".

    `concepts` holds one entry per emoji and `sizes` the number of emoji that "test" and "val" are to have. A concept
    goes undivided: one that would overfill a split is left to the next. What is always trained on stays in "train".
    """
    counts = Counter(concepts)
    splits: dict[str, Split] = dict.fromkeys(counts, "train")
    open_seats = dict(sizes)
    for concept in sorted(counts, key=_hash):
        if concept in _TRAINED:
            continue
        for split, seats in open_seats.items():
            if counts[concept] <= seats:
                splits[concept] = split
                open_seats[split] -= counts[concept]
                break
    return splits


def _hash(concept: str) -> str:
    return hashlib.sha256(concept.encode()).hexdigest()
