"""The config of a run: sections declared beside their owners, filled from defaults < preset < YAML < command line.

    config = load_config("my.yaml", ["--batch_size", "64"])
    config.training.batch_size, config.origin("batch_size")      # 64, "command line"

Keys are flat. Every part of the package receives its own section and never the whole config.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vembed.configuration.consent import Reading
from vembed.configuration.findings import Finding, Sections, findings, missing_data
from vembed.configuration.keys import AnySection, as_plain_value, build, keys_of
from vembed.configuration.layers import Overrides, Problem, Setting, user_settings
from vembed.configuration.presets import (
    DroppedValue,
    choose_preset,
    distills_scores,
    fit_preset,
    origin_of,
    other_loss,
    registered_loss,
)
from vembed.configuration.resolved_yaml import resolved_yaml
from vembed.configuration.rules import (
    combination_problems,
    idle_keys,
    value_problems,
)
from vembed.configuration.sections import LOSS_OPTIONS, Catalogue, SetupSettings, catalogue_for
from vembed.data.settings import DataSettings
from vembed.errors import ConfigError
from vembed.evaluation.settings import EvaluationSettings
from vembed.grad_cache.settings import GradCacheSettings
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.model.settings import ModelSettings
from vembed.registry import no_such
from vembed.training.settings import OptimizerSettings, TrainingSettings
from vembed.utils.settings import Section

DEFAULT = "default"
DATA_KEYS = ("data_path", "val_data_path", "test_data_path", "image_root")


@dataclass(frozen=True)
class Purpose:
    """The purpose a config is loaded for: keys that must be set, and keys of the data whose local files must exist."""

    required: tuple[str, ...] = ()
    existing: tuple[str, ...] = DATA_KEYS


ANY = Purpose()
TRAIN = Purpose(required=("model_name", "data_path"))


@dataclass(frozen=True)
class Config:
    """All settings of a run, by section. `loss_options` is the section of the loss that `loss_type` names.

    idle: keys without effect beside the others, and why. dropped: what the preset said and was not taken.
    """

    setup: SetupSettings
    model: ModelSettings
    data: DataSettings
    loss: LossSettings
    loss_options: Section
    grad_cache: GradCacheSettings
    training: TrainingSettings
    optimizer: OptimizerSettings
    evaluation: EvaluationSettings
    idle: Mapping[str, str] = field(compare=False, repr=False)
    dropped: tuple[DroppedValue, ...] = field(compare=False, repr=False)
    origins: Mapping[str, str] = field(compare=False, repr=False)

    def sections(self) -> dict[str, Section]:
        """The sections by name, in the order in which they are shown."""
        return {
            "setup": self.setup,
            "model": self.model,
            "data": self.data,
            "loss": self.loss,
            LOSS_OPTIONS: self.loss_options,
            "grad_cache": self.grad_cache,
            "training": self.training,
            "optimizer": self.optimizer,
            "evaluation": self.evaluation,
        }

    def origin(self, key: str) -> str:
        """Who set a key: `default`, `preset clip (detected)`, `my.yaml:3`, `command line`, `argument`."""
        return self.origins.get(key, DEFAULT)

    def to_flat(self) -> dict[str, object]:
        """The keys in force with their values as JSON and YAML know them. Loading them again gives an equal config."""
        return {key: value for section in self.sections().values() for key, value in _in_force(section, self.idle)}

    def defaults(self) -> dict[str, object]:
        """The default of every key of its sections, in force or not, as JSON and YAML know it."""
        return {
            name: as_plain_value(key.default)
            for section, settings in self.sections().items()
            for name, key in keys_of(section, type(settings)).items()
        }

    def to_yaml(self, path: str | Path) -> None:
        """Write the keys in force, with their origins as comments, to a file that loads as an equal config."""
        Path(path).write_text(self.yaml_text(), encoding="utf-8")

    def yaml_text(self) -> str:
        """The text that `to_yaml` writes."""
        in_force = {name: dict(_in_force(section, self.idle)) for name, section in self.sections().items()}
        return resolved_yaml(in_force, self.origin)


def load_config(
    path: str | Path | None = None,
    overrides: Overrides = (),
    *,
    origin: str = "command line",
    purpose: Purpose = ANY,
    reading: Reading = "followed",
) -> Config:
    """The config of a YAML file (None: no file) and, over it, overrides: a mapping, or the words of a command line.

    reading: whether the file may allow code to run, or only the overrides (see `vembed.configuration.consent`).
    Raises ConfigError that lists every problem; UsageError for words that are no settings.

    >>> config = load_config(overrides=["--batch_size", "64", "preset=none"])
    >>> config.training.batch_size, config.origin("batch_size"), config.training.epochs, config.origin("epochs")
    (64, 'command line', 3, 'default')
    """
    user = _without_null_preset(user_settings(path, overrides, origin, reading))
    preset, problems = choose_preset(user)
    catalogue = catalogue_for(registered_loss(user, preset), distills_scores=distills_scores({**preset, **user}))
    problems += value_problems(user, catalogue)
    wrong = {problem.location[0] for problem in problems if problem.location}
    valid = {key: setting for key, setting in user.items() if key in catalogue.keys and key not in wrong}
    config = _assemble(*fit_preset(preset, valid, catalogue), valid, catalogue)
    problems += combination_problems(valid, _values(config), catalogue.keys)
    for location, text in _findings(config, valid, purpose):
        if location[0] not in wrong:
            problems.append(Problem(origin_of(location, valid), location, text))
    if problems:
        raise ConfigError(_problems_text([*problems, *_left_out_plugins(user, reading, origin)]))
    return config


def _left_out_plugins(user: Mapping[str, Setting], reading: Reading, origin: str) -> Iterator[Problem]:
    """What to do where a key is unknown, perhaps because a file's plugins were not imported."""
    plugins = user.get("plugins")
    if reading == "shown" and plugins is not None and plugins.allows and plugins.origin != origin:
        yield Problem(
            plugins.origin, ("plugins",), "not imported here; name them with --plugins too, if you trust them"
        )


def _without_null_preset(user: dict[str, Setting]) -> dict[str, Setting]:
    """`preset: null` asks for the detected one, as its absence does."""
    return {key: setting for key, setting in user.items() if key != "preset" or setting.value is not None}


def _assemble(
    kept: Mapping[str, Setting], dropped: tuple[DroppedValue, ...], valid: Mapping[str, Setting], catalogue: Catalogue
) -> Config:
    """The config of these settings, which have no faults one by one; combinations are not checked yet."""
    chosen = {**kept, **valid}

    def fill(section: type[AnySection]) -> AnySection:
        return build(section, {key: chosen[key].value for key in section.model_fields if key in chosen})

    values = {name: as_plain_value(key.default) for name, key in catalogue.keys.items()}
    values |= {name: setting.value for name, setting in chosen.items()}
    unread = {name: other_loss(name, catalogue) for name in catalogue.idle if name in LossSettings.model_fields}
    return Config(
        setup=fill(SetupSettings),
        model=fill(ModelSettings),
        data=fill(DataSettings),
        loss=fill(LossSettings),
        loss_options=fill(catalogue.sections[LOSS_OPTIONS]),
        grad_cache=fill(GradCacheSettings),
        training=fill(TrainingSettings),
        optimizer=fill(OptimizerSettings),
        evaluation=fill(EvaluationSettings),
        idle=idle_keys(values, catalogue.keys) | unread,
        dropped=dropped,
        origins={key: setting.origin for key, setting in chosen.items()},
    )


def _values(config: Config) -> dict[str, object]:
    """All keys with their values, those without effect included."""
    sections = config.sections().values()
    return {key: as_plain_value(getattr(section, key)) for section in sections for key in type(section).model_fields}


def _in_force(section: Section, idle: Collection[str]) -> Iterator[tuple[str, object]]:
    return ((key, as_plain_value(getattr(section, key))) for key in type(section).model_fields if key not in idle)


def _findings(config: Config, valid: Mapping[str, Setting], purpose: Purpose) -> Iterator[Finding]:
    """The findings about the values of a config, for the purpose that it is loaded for."""
    if "model_name" in purpose.required and config.model.model_name is None and config.model.text_model_name is None:
        yield ("model_name",), "is not set; name a model, or two towers with text_model_name and image_model_name"
    if "data_path" in purpose.required and config.data.data_path is None:
        yield ("data_path",), "is not set; name the training data (a file, a folder or a hub name)"
    yield from findings(_rule_sections(config), valid)
    for key in purpose.existing:
        yield from missing_data(key, config.data)
    if config.loss.loss_type not in LossRegistry:
        yield ("loss_type",), no_such("loss", config.loss.loss_type, LossRegistry.list())


def _rule_sections(config: Config) -> Sections:
    return Sections(
        model=config.model,
        data=config.data,
        loss=config.loss,
        loss_options=config.loss_options,
        training=config.training,
        evaluation=config.evaluation,
        grad_cache=config.grad_cache,
    )


def _problems_text(problems: list[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    return "\n  ".join([f"{len(problems)} problems in the configuration:", *map(str, problems)])
