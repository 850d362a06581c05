"""What a family of models declares: how its folders are known, described, loaded and fed.

A model that is new to the package is one file: a Family, and the class that its `model` names (docs/add-a-model.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vembed.model.folder.facts import ModelFacts
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec, Pooling


@dataclass(frozen=True)
class Architecture:
    """What transformers' `model_type` tells: pooling, and the text length when config.json does not say.

    offset_positions: positions are numbered from pad_token_id + 1, so that fewer tokens fit than config.json says.
    causal: a language model, whose tokens see only those before them unless its config.json says otherwise; an embedder
    only where its files or `encoder_mode` say so.
    tested: the package's own tests compare this architecture with plain transformers; else it is opened generically.
    """

    pooling: Pooling
    max_positions: int | None = None
    offset_positions: bool = False
    causal: bool = False
    tested: bool = True


Describe = Callable[[ModelFacts, Architecture], ModelSpec]
Claim = Callable[[ModelFacts], str | None]
Note = Callable[[ModelFacts], str | None]
Check = Callable[[ModelSpec, ModelSettings], list[str]]


@dataclass(frozen=True)
class Family:
    """A kind of model that is loaded, fed and tuned in one way.

    name, aliases: what `encoder_mode` takes. preset: names its recommended settings. towers: what can be frozen.
    model, processor: "package.module:Class" of its BaseEmbeddingModel and ItemProcessor, imported when first needed.
    architectures: by `model_type`, those that it can read; own_code: how it reads those that no library knows and that
    bring code of their own, None where it does not. describe: from a folder's files to the spec.
    claim: the reason why a folder is of this family when no `encoder_mode` is given, None if it is not; without it
    every folder of one of its architectures is. keys: those settings of the by-family kind that it honours.
    note: what decided the spec beyond files and architecture, for the printed reason.
    check: problems of settings that the keys alone do not tell. model_names: short names for `model_name` -> hub ids.
    subfolders: where a checkpoint keeps each tower, when they are not one model.
    """

    name: str
    preset: str
    towers: tuple[Tower, ...]
    model: str
    processor: str
    describe: Describe
    architectures: Mapping[str, Architecture] = field(default_factory=dict)
    own_code: Architecture | None = None
    claim: Claim | None = None
    note: Note | None = None
    keys: frozenset[str] = frozenset()
    check: Check | None = None
    aliases: tuple[str, ...] = ()
    model_names: Mapping[str, str] = field(default_factory=dict)
    subfolders: Mapping[Tower, str] = field(default_factory=dict)

    def architecture(self, facts: ModelFacts) -> Architecture | None:
        """How this family reads a folder, None if it does not."""
        return self.architectures.get(facts.model_type, self.own_code if facts.has_own_code else None)

    def claims(self, facts: ModelFacts) -> str | None:
        """Why this family is the one for a folder, None if it is not."""
        if self.claim is not None:
            return self.claim(facts)
        return f"config.json says {facts.model_type}" if facts.model_type in self.architectures else None
