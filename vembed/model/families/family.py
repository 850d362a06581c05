"""Family: a kind of model, with how its folders are recognised and described, its model class and its processor.

A model that is new to the package is one file: a Family, and the class that its `model` names (docs/add-a-model.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vembed.model.folder.facts import ModelFacts
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec, Pooling


@dataclass(frozen=True)
class Architecture:
    """Defaults for a `model_type`: pooling, and max_positions (text tokens) if config.json has no such limit.

    offset_positions: positions are numbered from pad_token_id + 1, so that fewer tokens fit than config.json says.
    causal: a language model with causal attention, unless its config.json turns that off; it counts as an embedder
    only by its files or by `encoder_mode`.
    tested: the package's tests compare this architecture with plain transformers.
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
    """A kind of models with one model class and one processor.

    name, aliases: values of `encoder_mode`. preset: name of its recommended settings. towers: those that it has.
    model, processor: "package.module:Class" of its BaseEmbeddingModel and ItemProcessor, imported when first needed.
    architectures: those that it supports, by `model_type`; own_code: defaults for other model_types with remote code,
    None if it supports none. describe: from a folder's files to the spec.
    claim: the reason why a folder is of this family when no `encoder_mode` is set, None if it is not; without `claim`,
    every folder with one of its architectures is. keys: the by-family settings that it supports.
    note: what decided the spec beyond files and architecture, for the printed reason.
    check: messages for further settings that a model does not support. model_names: short names -> hub ids.
    subfolders: of each tower within a checkpoint; {} if the towers are one transformers model.
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
        """This family's architecture for a folder's model_type or remote code; None if it supports neither."""
        return self.architectures.get(facts.model_type, self.own_code if facts.has_own_code else None)

    def claims(self, facts: ModelFacts) -> str | None:
        """The reason why a folder is of this family, None if it is not."""
        if self.claim is not None:
            return self.claim(facts)
        return f"config.json says {facts.model_type}" if facts.model_type in self.architectures else None
