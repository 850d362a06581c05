"""The files that are generated from the settings are up to date, and every example loads."""

import json
from pathlib import Path

import pytest

from vembed.config import TRAIN, load_config
from vembed.configuration.layers import PRESETS, preset_names
from vembed.configuration.sections import catalogue_for, every_key
from vembed.configuration.yaml_text import parse_yaml, read_yaml
from vembed.entrypoints.config import defaults, key_help, reference, schema, show

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def test_defaults_yaml_is_what_the_code_says():
    assert (PRESETS / "defaults.yaml").read_text() == defaults(), (
        "run `vembed config defaults > vembed/configs/defaults.yaml`"
    )


def test_the_reference_is_what_the_code_says():
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == reference(), "run `vembed config reference > docs/configuration.md`"
    assert all(f"| `{key}` |" in text for key in every_key())


def test_defaults_name_every_key_with_its_default():
    values = parse_yaml(defaults()).values
    assert values.keys() == every_key().keys()
    config = load_config()
    assert {key: values[key] for key in config.to_flat()} == config.to_flat()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_nothing_it_says_is_without_effect(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = read_yaml(example).values
    for path in data_paths(document):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    config = load_config(example, purpose=TRAIN)
    assert document.keys() <= config.to_flat().keys()
    assert not {drop.key for drop in config.dropped} - {"warmup_ratio"}


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"clip_train", "text_train", "composed_train"}


def test_the_schema_knows_every_key_and_accepts_the_examples():
    text = schema()
    assert json.loads(json.dumps(text)) == text
    assert text["properties"].keys() == every_key().keys()
    assert text["additionalProperties"] is False
    assert not {"common", "only_with", "instead_of"} & {key for entry in text["properties"].values() for key in entry}
    assert text["properties"]["batch_size"]["minimum"] == 1
    assert set(preset_names()) < set(text["properties"]["preset"]["enum"])
    for example in EXAMPLES:
        for key, value in read_yaml(example).values.items():
            assert fits(value, text["properties"][key], text["$defs"]), (example.name, key)
    assert not fits("many", text["properties"]["batch_size"], text["$defs"])


def test_the_help_shows_the_26_keys_that_matter_and_all_on_request():
    short, full = key_help(common_only=True, width=80), key_help(common_only=False, width=80)
    assert short.count("\n  --") == 26
    named = {line.split()[0].removeprefix("--") for line in full.splitlines() if line.startswith("  --")}
    assert named == every_key().keys()  # losses may share one
    assert max(map(len, [*short.splitlines(), *full.splitlines()])) <= 80
    assert "--learning_rate " in short
    assert "[float, at least 0, at most 10; default 2.0e-05]" in " ".join(short.split())


def test_show_aligns_every_key_with_its_value_and_origin():
    config = load_config(overrides=["preset=clip", "warmup_steps=5", "--use_lora"])
    lines = show(config).splitlines()
    assert "  batch_size                              64          preset clip" in lines
    assert "  warmup_steps                            5           command line" in lines
    assert "  head_learning_rate                      0.0002      preset clip (LoRA)" in lines
    assert "  warmup_ratio: 0.1 (preset clip): warmup_steps is set" in lines
    keys = every_key().keys() - catalogue_for("infonce").idle.keys()
    assert all(any(line.startswith(f"  {key} ") for line in lines) for key in keys)


def data_paths(document):
    """The data files that an example names."""
    for key in ("data_path", "val_data_path", "test_data_path"):
        for entry in document.get(key) if isinstance(document.get(key), list) else [document.get(key)]:
            if entry is not None:
                yield entry if isinstance(entry, str) else entry["path"]


def fits(value, schema, definitions):
    """Whether a value has the form that a JSON schema asks for, as far as ours use it."""
    if "$ref" in schema:
        return fits(value, definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return any(fits(value, option, definitions) for option in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    if schema.get("type") == "array":
        return isinstance(value, list) and all(fits(entry, schema.get("items", {}), definitions) for entry in value)
    if schema.get("type") == "null":
        return value is None
    return "type" not in schema or isinstance(value, kinds[schema["type"]])
