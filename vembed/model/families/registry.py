"""All families by name: those of the package, and those that plugins add. Imports neither torch nor transformers."""

from vembed.errors import ConfigError, ModelError
from vembed.model.families.composed import COMPOSED
from vembed.model.families.dual import CLIP, SIGLIP
from vembed.model.families.family import Family
from vembed.model.families.late_interaction import LATE_INTERACTION
from vembed.model.families.text import TEXT
from vembed.model.families.vision import VISION
from vembed.model.families.vlm import QWEN3_VL, VLM_GENERIC
from vembed.model.folder.facts import ModelFacts
from vembed.registry import nearest_names
from vembed.utils.untrusted import is_folder

_FAMILIES: dict[str, Family] = {}
_NAMES: dict[str, str] = {}  # name or alias -> name


def register_family(family: Family) -> Family:
    """Add a family. Its `claim` is tried before those of families that were registered earlier.

    Raises ConfigError if its name or an alias is taken.
    """
    for name in (family.name, *family.aliases):
        if name in _NAMES:
            raise ConfigError(f"model family {family.name!r}: the name {name!r} is taken by family {_NAMES[name]!r}")
    _FAMILIES[family.name] = family
    _NAMES.update(dict.fromkeys((family.name, *family.aliases), family.name))
    return family


def families() -> list[Family]:
    """All families, in the order in which they were registered."""
    return list(_FAMILIES.values())


def family_named(name: str) -> Family:
    """The family with that name. Raises ModelError if it is not registered: its plugin may not be imported."""
    if name not in _FAMILIES:
        raise ModelError(
            f"the model is of family {name!r}, which is not known here (known: {', '.join(_FAMILIES)}); name the module"
            " that registers it in plugins, or import it first"
        )
    return _FAMILIES[name]


def family_of_mode(encoder_mode: str) -> Family:
    """The family with that name or alias. Raises ModelError that lists the known ones."""
    if encoder_mode not in _NAMES:
        known = sorted({*_NAMES, "auto"})
        near = nearest_names(encoder_mode, known)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ModelError(f"encoder_mode {encoder_mode!r} is unknown{hint} Known: {', '.join(known)}")
    return _FAMILIES[_NAMES[encoder_mode]]


def family_for(facts: ModelFacts) -> tuple[Family, str]:
    """The family of a folder, and the reason. Raises ModelError if no family claims it."""
    for family in reversed(_FAMILIES.values()):
        reason = family.claims(facts)
        if reason is not None:
            return family, reason
    able = [family.name for family in _FAMILIES.values() if facts.model_type in family.architectures]
    if able:
        raise ModelError(
            f"{facts.folder}: nothing in its files says that this {facts.model_type} model embeds; encoder_mode:"
            f" {able[0]} uses it as a {able[0]} model"
        )
    known = sorted({model_type for family in _FAMILIES.values() for model_type in family.architectures})
    raise ModelError(
        f"{facts.folder}: models of type {facts.model_type!r} are not supported{_own_code_hint(facts)}; supported are:"
        f" {', '.join(known)}"
    )


def _own_code_hint(facts: ModelFacts) -> str:
    able = [family.name for family in _FAMILIES.values() if family.own_code]
    if facts.own_class is None or not able:
        return ""
    return (
        f". It names code of its own ({facts.own_class}): set encoder_mode to the kind of model that it is"
        f" ({', '.join(able)}) and trust_remote_code: true (--trust_remote_code), if you trust that code"
    )


def hub_id(name: str) -> str:
    """The hub id of a short name ("clip"); other names and folders as they are."""
    if is_folder(name):
        return name
    return next((family.model_names[name] for family in _FAMILIES.values() if name in family.model_names), name)


for _family in (TEXT, VISION, CLIP, SIGLIP, VLM_GENERIC, QWEN3_VL, COMPOSED, LATE_INTERACTION):
    register_family(_family)
