"""The target of `vembed evaluate`, with its config. Imports no torch, so that a mistyped key is told at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vembed.config import Config, Purpose, load_config
from vembed.configuration.consent import consent_keys
from vembed.configuration.layers import Overrides, overridden
from vembed.configuration.sections import every_key
from vembed.data.settings import DataSettings
from vembed.errors import UsageError
from vembed.training.run.folder import RunFolder
from vembed.utils.untrusted import is_there


@dataclass(frozen=True)
class EvaluationTarget:
    """A finished run (`run`), the model of a YAML config as it is before training, or any model (`is_base`: which).

    config_text: the config as the report shows it. on_own_data: whether a run is measured on the data it was made with.
    """

    config: Config
    config_text: str
    run: RunFolder | None = None
    is_base: bool = False
    on_own_data: bool = False


def resolve_target(target: str | Path, overrides: Overrides = ()) -> EvaluationTarget:
    """The target that a run's folder, a YAML config, or a model (folder or hub id) with these overrides stands for.

    Raises ConfigError, UsageError for a model without test data.
    """
    if not str(target).strip():
        raise UsageError("what to measure is empty; name a run's folder, a YAML config or a model")
    run = RunFolder(Path(target))
    if is_there(str(run.config)) and is_there(str(run.record)):
        return _run_target(run, overrides)
    if Path(target).suffix in {".yaml", ".yml"}:
        config = load_config(target, overrides, purpose=Purpose(("model_name",)), reading="judged")
        return EvaluationTarget(config, config.yaml_text(), is_base=True)
    config = load_config(None, _with_model(target, overrides), purpose=Purpose(("model_name",)))
    if config.data.test_data_path is None:
        raise UsageError(f"{target} is measured as a model; name the data to measure it on with --test_data_path")
    return EvaluationTarget(config, config.yaml_text())


def _run_target(run: RunFolder, overrides: Overrides) -> EvaluationTarget:
    config = load_config(run.config, overrides, purpose=Purpose(existing=()), reading="judged")
    # The file itself says who set each key when the run was made; a config loaded from it says "config.yaml:12".
    text = config.yaml_text() if overrides else run.config.read_text(encoding="utf-8")
    return EvaluationTarget(config, text, run, on_own_data=config.data == _own_data(run, overrides))


def _own_data(run: RunFolder, overrides: Overrides) -> DataSettings:
    """The data that a run was made with; what is allowed in reading it, the overrides say."""
    allowed = overridden(overrides, consent_keys(every_key()))
    return load_config(run.config, allowed, purpose=Purpose(existing=()), reading="judged").data


def _with_model(target: str | Path, overrides: Overrides) -> Overrides:
    if isinstance(overrides, Mapping):
        return {**overrides, "model_name": str(target)}
    return [*overrides, f"model_name={target}"]
