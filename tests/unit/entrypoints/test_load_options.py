"""What a command says about opening a model reaches the model's settings, and mistakes name the option."""

import sys

import pytest

from vembed.entrypoints.load_options import LoadOptions
from vembed.errors import ConfigError, UsageError
from vembed.model.settings import ModelSettings


def test_what_is_said_is_set_and_the_rest_stays_unset():
    assert LoadOptions().settings == ModelSettings()
    assert LoadOptions().settings.model_fields_set == set()
    said = {
        "torch_dtype": "bfloat16",
        "trust_remote_code": True,
        "allow_pickled_weights": True,
        "encoder_mode": "clip",
    }
    settings = LoadOptions(**said, plugins=["not imported for this"]).settings
    assert settings.model_dump(include=settings.model_fields_set) == said


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"--torch_dtype 'int8' is unknown; known are: float32, bfloat16, float16"):
        _ = LoadOptions(torch_dtype="int8").settings


def test_plugins_are_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "plugin_of_the_opening.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    LoadOptions(plugins=["plugin_of_the_opening"]).import_plugins()
    assert sys.modules.pop("plugin_of_the_opening").__file__ == str(tmp_path / "plugin_of_the_opening.py")


def test_a_plugin_that_cannot_be_imported_is_told_with_who_named_it():
    with pytest.raises(ConfigError, match=r"^--plugins: plugins: no_such_plugin cannot be imported"):
        LoadOptions(plugins=["no_such_plugin"]).import_plugins()
    with pytest.raises(ConfigError, match=r"^command line: plugins: no_such_plugin cannot be imported"):
        LoadOptions(plugins=["no_such_plugin"]).import_plugins("command line")
