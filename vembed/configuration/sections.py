"""The sections of a config, and the keys they declare in one flat name space."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from vembed.configuration.keys import Key, keys_of
from vembed.data.settings import DataSettings
from vembed.errors import ConfigError
from vembed.evaluation.settings import EvaluationSettings
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.model.settings import ModelSettings
from vembed.training.settings import OptimizerSettings, TrainingSettings
from vembed.utils.settings import COMMON, NEEDS_CONSENT, Section

LOSS_OPTIONS = "loss_options"
_TEMPERATURE = ("temperature", "learn_temperature")
NO_PRESET = "none"


class SetupSettings(Section):
    """Where values come from that are not set here."""

    preset: str | None = Field(
        None,
        description="Preset under your values; default: the one of the model's family. `none`: no preset.",
        json_schema_extra=COMMON,
    )
    plugins: tuple[str, ...] = Field(
        (),
        description="Python modules to import first; they may register components with keys of their own.",
        json_schema_extra=NEEDS_CONSENT,
    )


SECTIONS: Mapping[str, type[Section]] = {
    "setup": SetupSettings,
    "model": ModelSettings,
    "data": DataSettings,
    "loss": LossSettings,
    "grad_cache": GradCacheSettings,
    "training": TrainingSettings,
    "optimizer": OptimizerSettings,
    "evaluation": EvaluationSettings,
}


@dataclass(frozen=True)
class Catalogue:
    """The keys of a run with one loss.

    idle: the keys that only other losses read, and the names of those losses; the temperature is one of them.
    """

    sections: Mapping[str, type[Section]]
    keys: Mapping[str, Key]
    idle: Mapping[str, tuple[str, ...]]


def catalogue_for(loss_type: str, *, distills_scores: bool = False) -> Catalogue:
    """The catalogue of a run with this loss, which is registered. Raises ConfigError when two sections clash.

    distills_scores: a teacher's scores are learned from too, which takes a temperature whatever the loss.
    """
    options = {name: keys_of(LOSS_OPTIONS, LossRegistry.get(name).settings) for name in LossRegistry.list()}
    shared = _shared_keys()
    _refuse_clashes(shared, options)
    readers = {
        key: tuple(name for name, declared in options.items() if key in declared) for key in _sorted_keys(options)
    }
    if not distills_scores:
        tempered = tuple(name for name in options if LossRegistry.get(name).has_temperature)
        readers |= dict.fromkeys(_TEMPERATURE, tempered)
    idle = {key: names for key, names in readers.items() if loss_type not in names}
    keys = {key: declared for key, declared in {**shared, **options[loss_type]}.items() if key not in idle}
    return Catalogue({**SECTIONS, LOSS_OPTIONS: LossRegistry.get(loss_type).settings}, keys, idle)


def _sorted_keys(options: Mapping[str, Mapping[str, Key]]) -> list[str]:
    return sorted({key for declared in options.values() for key in declared})


def every_key() -> dict[str, Key]:
    """The keys of all sections and all losses, in the order of their sections."""
    keys = _shared_keys()
    for name in LossRegistry.list():
        for key, declared in keys_of(f"loss_type: {name}", LossRegistry.get(name).settings).items():
            keys.setdefault(key, declared)
    return keys


def _shared_keys() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for section, settings in SECTIONS.items():
        declared = keys_of(section, settings)
        assert not keys.keys() & declared.keys(), f"section {section} declares a key twice"
        keys |= declared
    return keys


def _refuse_clashes(shared: Mapping[str, Key], options: Mapping[str, Mapping[str, Key]]) -> None:
    first: dict[str, tuple[str, Key]] = {
        key: (f"section {declared.section}", declared) for key, declared in shared.items()
    }
    for loss, keys in options.items():
        for name, key in keys.items():
            owner, other = first.setdefault(name, (f"loss_type: {loss}", key))
            if name in shared or other.type_text != key.type_text:
                raise ConfigError(
                    f"{owner} and loss_type: {loss} both declare the key {name} ({other.type_text}; {key.type_text});"
                    " a plugin's key needs a name of its own"
                )
