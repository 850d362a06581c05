"""What models are called in reports."""

import json
import os

import pytest

from vembed.model.settings import ModelSettings
from vembed.training.run.titles import model_title, tuned_before


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one/final", "two/final", "a/model", "b/model", "one/checkpoint-30/text"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "title"),
    [
        ({"model_name": "org/clip"}, "org/clip"),
        ({"model_name": "a/model"}, "model"),
        ({"model_name": "one/final/"}, "one/final"),
        ({"model_name": "two/final"}, "two/final"),
        ({"model_name": "one/checkpoint-30"}, "one/checkpoint-30"),
        ({"model_name": "one/checkpoint-30/text"}, "one/checkpoint-30/text"),
        ({"text_model_name": "a/model", "image_model_name": "b/model"}, "a/model + b/model"),
        ({"text_model_name": "a/model", "image_model_name": "a/model"}, "model + model"),
        ({"text_model_name": "one/final", "image_model_name": "org/dino"}, "one/final + org/dino"),
    ],
)
def test_two_models_never_have_one_title(here, names, title):
    assert model_title(ModelSettings(**names)) == title


def test_the_folder_one_stands_in_has_its_name(here, monkeypatch):
    monkeypatch.chdir(here / "one" / "final")
    assert model_title(ModelSettings(model_name=".")) == "one/final"


def test_a_base_that_a_run_made_says_what_it_was_tuned_from(here):
    saved = {"base_model": {"model_name": "org/clip", "revision": None}, "step": 1200}
    (here / "one" / "final" / "vembed_config.json").write_text(json.dumps(saved))
    told = tuned_before(ModelSettings(model_name="one/final"))
    assert told == "one/final, the base, was itself tuned before: from org/clip, to step 1,200"
    assert tuned_before(ModelSettings(model_name="two/final")) is None
    for broken in ("{", "[]", '{"base_model": 3, "step": 1}'):
        (here / "two" / "final" / "vembed_config.json").write_text(broken)
        assert tuned_before(ModelSettings(model_name="two/final")) is None


@pytest.mark.parametrize("content", ["[" * 100_000, '{"base_model": {}, "step": 1e999}', '{"base_model": {}}'])
def test_a_file_that_says_no_such_thing_is_told_as_none(here, content):
    (here / "two" / "final" / "vembed_config.json").write_text(content)
    assert tuned_before(ModelSettings(model_name="two/final")) is None


def test_a_pipe_is_not_waited_for(here):
    os.mkfifo(here / "two" / "final" / "vembed_config.json")
    assert tuned_before(ModelSettings(model_name="two/final")) is None


def test_a_name_that_no_file_can_have_is_its_own_title():
    assert model_title(ModelSettings(model_name="x" * 5000)) == "x" * 5000
    assert tuned_before(ModelSettings(model_name="x\0y")) is None
