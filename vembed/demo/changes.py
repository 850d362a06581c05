"""Changes of an emoji that a few words can ask for: the pairs behind the demo's queries of picture and text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vembed.demo.emoji import Emoji, untoned_key

_TONE = re.compile(r"\b(?:(?:medium-)?(?:light|dark)|medium) skin tone\b")
_HAIR = re.compile(r" ((?:red|curly|white|blond) hair|bald|beard)$")
_RIGHT = " facing right"
# The other words that may stand where a gender's word stands; "" as in "man farmer" and "farmer".
_OTHER_GENDERS = {
    "man": ("person", "woman", ""),
    "woman": ("person", "man", ""),
    "men": ("people", "women"),
    "women": ("people", "men"),
    "boy": ("child", "girl"),
    "girl": ("child", "boy"),
}


@dataclass(frozen=True)
class Change:
    """From one emoji to another by a text such as "change to dark skin tone".

    others: what the same emoji becomes by other changes of that kind (other tones, another gender).
    """

    base: Emoji
    text: str
    target: Emoji
    others: tuple[Emoji, ...]


def changes(emojis: Sequence[Emoji], toned: Sequence[Emoji]) -> list[Change]:
    """Every change of tone, gender, hair or direction that leads from one of the emoji to another, ordered by base.

    An emoji and what it becomes are of one concept, and so of one split.
    """
    of_key = {emoji.key: emoji for emoji in emojis}
    of_name = {emoji.name: emoji for emoji in emojis}
    found: dict[tuple[str, str], dict[str, Emoji]] = {}  # (key of the base, kind) -> text -> target
    for target in toned:
        text = _asked(_tone_of(target.name))
        found.setdefault((of_key[untoned_key(target.key)].key, "tone"), {})[text] = target
    for target in emojis:
        for base, kind, wanted in _ways_to(target, of_name):
            found.setdefault((base.key, kind), {})[_asked(wanted)] = target
    return [
        Change(of_key[key], text, target, tuple(other for other in targets.values() if other != target))
        for (key, _), targets in sorted(found.items())
        for text, target in targets.items()
    ]


def _asked(wanted: str) -> str:
    return f"change to {wanted}"


def _tone_of(name: str) -> str:
    tone = _TONE.search(name)
    assert tone is not None, name
    return tone[0]


def _ways_to(target: Emoji, of_name: Mapping[str, Emoji]) -> Iterator[tuple[Emoji, str, str]]:
    """(base, kind of change, what is asked for) by the emoji's name: "man red hair" comes from "man"."""
    name = target.name
    bases: list[tuple[str, str, str]] = []
    if name.endswith(_RIGHT):
        bases.append((name.removesuffix(_RIGHT), "direction", _RIGHT.strip()))
    if hair := _HAIR.search(name):
        bases.append((name[: hair.start()], "hair", hair[1]))
    words = name.split()
    gendered = [number for number, word in enumerate(words) if word in _OTHER_GENDERS]
    if len(gendered) == 1:
        [place] = gendered
        for other in _OTHER_GENDERS[words[place]]:
            replaced = [*words[:place], *([other] if other else []), *words[place + 1 :]]
            bases.append((" ".join(replaced), "gender", words[place]))
    return ((of_name[base], kind, wanted) for base, kind, wanted in bases if _is_variant(of_name.get(base), target))


def _is_variant(base: Emoji | None, target: Emoji) -> bool:
    """True if there is such an emoji, and it shows the same idea ("ball" is no variant of "bouncing ball")."""
    return base is not None and base.concept == target.concept
