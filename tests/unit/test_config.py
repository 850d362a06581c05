"""Values come from defaults < preset < YAML < command line, and each keeps its origin."""

import sys
from dataclasses import fields

import pytest

from vembed.config import TRAIN, Config, load_config
from vembed.configuration.layers import preset_names, read_preset
from vembed.configuration.sections import SECTIONS, catalogue_for, every_key
from vembed.data.settings import DataEntry
from vembed.errors import ConfigError, UsageError
from vembed.losses.registry import LossRegistry


@pytest.fixture
def write_yaml(tmp_path, monkeypatch):
    """A function that writes my.yaml to the current folder, which holds pairs.jsonl, and returns its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}\n")

    def write(text):
        (tmp_path / "my.yaml").write_text(text)
        return "my.yaml"

    return write


@pytest.fixture
def _own_losses(monkeypatch, tmp_path):
    """The current folder is empty; losses and import paths that plugins add are gone after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LossRegistry, "_components", dict(LossRegistry._components))
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_without_anything_every_key_has_its_default():
    config = load_config()
    flat = config.to_flat()
    assert (flat["batch_size"], flat["learning_rate"], flat["epochs"], flat["model_name"]) == (32, 2e-5, 3, None)
    assert {config.origin(key) for key in flat} == {"default"}
    of_other_losses = catalogue_for(config.loss.loss_type).idle.keys()
    assert flat.keys() | config.idle.keys() | of_other_losses == every_key().keys()
    assert not flat.keys() & of_other_losses


def test_command_line_wins_over_yaml_over_preset_over_default(write_yaml):
    path = write_yaml("preset: clip\nepochs: 7\nweight_decay: 0.3\nbatch_size: 48\n")
    config = load_config(path, ["--batch_size", "96"])
    assert (config.training.batch_size, config.origin("batch_size")) == (96, "command line")
    assert (config.training.epochs, config.origin("epochs")) == (7, "my.yaml:2")
    assert (config.optimizer.learning_rate, config.origin("learning_rate")) == (1e-5, "preset clip")
    assert (config.training.seed, config.origin("seed")) == (42, "default")


def test_the_detected_family_brings_its_preset(clip_folder, bert_folder, dinov2_folder, siglip_folder):
    for folder, preset in [
        (clip_folder, "clip"),
        (siglip_folder, "siglip"),
        (bert_folder, "text"),
        (dinov2_folder, "dino"),
    ]:
        config = load_config(overrides={"model_name": folder})
        assert config.setup.preset == preset
        assert config.origin("preset") == "detected"
        assert config.origin("learning_rate") == f"preset {preset} (detected)"
        assert config.optimizer.learning_rate == read_preset(preset).values["learning_rate"]


def test_two_towers_bring_the_composed_preset(bert_folder, dinov2_folder):
    config = load_config(overrides={"text_model_name": bert_folder, "image_model_name": dinov2_folder})
    assert config.origin("epochs") == "preset composed (detected)"


def test_adapters_take_the_presets_values_for_them(clip_folder):
    named = load_config(overrides=["preset=clip", "--use_lora"])
    assert (named.optimizer.head_learning_rate, named.origin("head_learning_rate")) == (2e-4, "preset clip (LoRA)")
    assert named.origin("learning_rate") == "preset clip"
    detected = load_config(overrides={"model_name": clip_folder, "use_lora": True})
    assert detected.origin("head_learning_rate") == "preset clip (detected, LoRA)"
    assert load_config(overrides=["preset=clip"]).origin("head_learning_rate") == "default"


def test_preset_none_leaves_the_defaults(clip_folder):
    config = load_config(overrides={"model_name": clip_folder, "preset": "none"})
    assert config.origin("batch_size") == "default"
    assert config.setup.preset == "none"


def test_a_null_preset_is_detected_as_if_it_were_absent(clip_folder):
    assert load_config(overrides={"model_name": clip_folder, "preset": None}).setup.preset == "clip"


def test_a_users_key_rules_out_what_the_preset_says_instead():
    config = load_config(
        overrides=["preset=clip", "warmup_steps=50", "global_batch_size=128", "--no-use_gradient_cache"]
    )
    dropped = {drop.key: drop.reason for drop in config.dropped}
    assert dropped == {
        "warmup_ratio": "warmup_steps is set",
        "batch_size": "global_batch_size is set",
        "gradient_cache_chunk_size": "only with use_gradient_cache: true",
    }
    assert not dropped.keys() & config.to_flat().keys()
    assert config.idle["batch_size"] == "global_batch_size is set"


@pytest.mark.parametrize(
    "words", [["--batch_size", "64"], ["--batch_size=64"], ["batch_size=64"], ["--batch-size", "64"]]
)
def test_every_way_to_write_a_setting_means_the_same(words):
    assert load_config(overrides=words).training.batch_size == 64


def test_flags_stand_alone_or_take_true_and_false():
    assert load_config(overrides=["--use_lora", "seed=1"]).model.use_lora is True
    assert load_config(overrides=["--use_lora", "true"]).model.use_lora is True
    assert load_config(overrides=["--no-report"]).evaluation.report is False
    assert load_config(overrides=["--no_report"]).evaluation.report is False
    assert load_config(overrides=["--report", "false"]).evaluation.report is False


def test_lists_and_mappings_are_yaml_and_a_list_needs_no_brackets():
    config = load_config(overrides=["learning_rates={vision: 1e-5, text: 0}", "--eval_k", "1,10", "freeze=[text]"])
    assert config.optimizer.learning_rates == {"vision": 1e-5, "text": 0.0}
    assert config.evaluation.eval_k == (1, 10)
    assert config.model.freeze == ("text",)


def test_text_on_the_command_line_stays_as_it_is():
    words = [
        "--query_prompt",
        "query: ",
        "--document_prompt",
        "# {x}",
        "encoder_mode=12",
        "output_dir=a=b",
        "pooling=null",
    ]
    model = load_config(overrides=words).model
    assert (model.query_prompt, model.document_prompt, model.encoder_mode, model.pooling) == (
        "query: ",
        "# {x}",
        "12",
        None,
    )
    assert load_config(overrides=["output_dir=a=b"]).training.output_dir == "a=b"


def test_several_data_sets_keep_their_order_and_what_was_set(write_yaml):
    path = write_yaml("data_path:\n  - pairs.jsonl\n  - {path: pairs.jsonl, weight: 2, retrieval_mode: i2i}\n")
    config = load_config(path)
    assert config.data.data_path == ("pairs.jsonl", DataEntry(path="pairs.jsonl", weight=2, retrieval_mode="i2i"))
    assert config.to_flat()["data_path"][1] == {"path": "pairs.jsonl", "retrieval_mode": "i2i", "weight": 2.0}


@pytest.mark.parametrize("key", ["data_path", "val_data_path", "test_data_path"])
def test_a_single_data_set_with_settings_needs_no_list(write_yaml, key):
    entry = DataEntry(path="hub/pairs", split="dev")
    for words in ([f"{key}={{path: hub/pairs, split: dev}}"], [f"--{key}", " {path: hub/pairs, split: dev}"]):
        assert getattr(load_config(overrides=words).data, key) == entry
    config = load_config(write_yaml(f"{key}: {{path: hub/pairs, split: dev}}\n"))
    assert getattr(config.data, key) == entry
    assert config.to_flat()[key] == {"path": "hub/pairs", "split": "dev"}


def test_a_mistake_in_a_single_data_set_is_named_with_its_place(write_yaml):
    with pytest.raises(ConfigError, match=r"data_path\.wieght.* unknown key; did you mean weight"):
        load_config(write_yaml("data_path: {path: hub/pairs, wieght: 2}\n"))
    with pytest.raises(ConfigError, match=r"data_path\.path.*is missing"):
        load_config(overrides=["data_path={weight: 2}"])


@pytest.mark.parametrize(
    "words",
    [
        ["preset=none"],
        ["preset=clip", "--use_lora", "lora_r=4"],
        ["preset=dino", "warmup_steps=5", "global_batch_size=64", "eval_k=1,3", "best_metric=recall@3"],
        [
            "learning_rates={vision: 1e-5}",
            "query_prompt=2e-5",
            "document_prompt=no: 'x'\n#",
            "--use_gradient_cache=false",
        ],
        ["on_bad_sample=skip", "max_bad_fraction=0.5", "data_path=[{path: a/b, weight: 0.5}, c/d]", "augment=none"],
        ["data_path={path: a/b, split: dev}"],
    ],
)
def test_a_written_config_loads_as_an_equal_one(words, tmp_path):
    config = load_config(overrides=words)
    config.to_yaml(tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert again.to_flat() == config.to_flat()
    assert again.idle == config.idle


def test_a_written_config_tells_origins(tmp_path):
    config = load_config(overrides=["preset=clip", "batch_size=8"])
    lines = config.yaml_text().splitlines()
    assert "batch_size: 8  # command line" in lines
    assert "epochs: 5  # preset clip" in lines
    assert "seed: 42  # default" in lines


def test_arguments_of_a_call_say_so(tmp_path, clip_folder):
    (tmp_path / "pairs.csv").write_text("query,positive\n")
    arguments = {
        "model_name": clip_folder,
        "data_path": tmp_path / "pairs.csv",
        "eval_k": (1, 2),
        "best_metric": "ndcg@2",
    }
    config = load_config(overrides=arguments, origin="argument", purpose=TRAIN)
    assert config.data.data_path == str(tmp_path / "pairs.csv")
    assert (config.evaluation.eval_k, config.origin("eval_k")) == ((1, 2), "argument")


def test_words_that_are_no_settings_are_refused():
    with pytest.raises(UsageError, match="unexpected argument 'b'"):
        load_config(overrides=["model_name=a", "b"])
    with pytest.raises(UsageError, match="seed set twice"):
        load_config(overrides=["--seed=1", "seed=2"])
    with pytest.raises(UsageError, match="batch_size needs a value"):
        load_config(overrides=["--batch_size", "--use_lora"])


def test_the_sections_of_a_config_are_those_that_declare_keys():
    names = [field.name for field in fields(Config) if field.name not in ("idle", "dropped", "origins")]
    assert names == list(load_config().sections())
    assert set(names) == {*SECTIONS, "loss_options"}


@pytest.mark.usefixtures("_own_losses")
def test_a_plugin_brings_a_loss_with_keys_of_its_own(write_yaml, tmp_path):
    (tmp_path / "my_losses.py").write_text(PLUGIN.format(loss="hinge", key="hinge_width: float = Field(0.2, gt=0)"))
    path = write_yaml("plugins: [my_losses]\nloss_type: hinge\nhinge_width: 0.5\n")
    config = load_config(path)
    assert config.loss_options.hinge_width == 0.5
    with pytest.raises(ConfigError, match=r"my.yaml:2: hinge_width: only loss_type: hinge has this key"):
        load_config(write_yaml("plugins: [my_losses]\nhinge_width: 0.5\n"))
    with pytest.raises(
        ConfigError,
        match=r"my.yaml:3: loss_direction: only loss_type: colbert or distillation or infonce or mrl or supcon has",
    ):
        load_config(write_yaml("plugins: [my_losses]\nloss_type: hinge\nloss_direction: both\n"))


@pytest.mark.usefixtures("_own_losses")
@pytest.mark.parametrize(
    ("module", "key", "problem"),
    [
        (
            "clash_with_section",
            "epochs: int = Field(3)",
            "section training and loss_type: clash_with_section both declare the key epochs",
        ),
        (
            "clash_with_loss",
            "loss_direction: int = Field(3)",
            "loss_type: colbert both declare the key loss_direction",
        ),
    ],
)
def test_a_plugins_key_that_exists_already_is_refused(module, key, problem, tmp_path):
    (tmp_path / f"{module}.py").write_text(PLUGIN.format(loss=module, key=key))
    with pytest.raises(ConfigError, match=problem):
        load_config(overrides=[f"plugins={module}"])


def test_a_plugin_that_is_not_there_is_named_with_its_line(write_yaml):
    with pytest.raises(ConfigError, match=r"my.yaml:2: plugins: no_such_module cannot be imported"):
        load_config(write_yaml("plugins:\n  - no_such_module\n"))


def test_every_preset_holds_known_keys_that_take_effect():
    assert preset_names() == ["clip", "colpali", "composed", "dino", "qwen3", "siglip", "text", "vlm"]
    for name in preset_names():
        preset = read_preset(name)
        for words in ([], ["--use_lora"]):
            config = load_config(overrides=[f"preset={name}", *words])
            assert config.dropped == ()
            values = {**preset.values, **(preset.lora if words else {})}
            assert {key: config.to_flat()[key] for key in values} == values
        assert preset.lora.keys() <= config.to_flat().keys()
        assert {"epochs", "mixed_precision", "learning_rate", "temperature"} <= preset.values.keys()
        assert preset.values["temperature"] is None  # any other would take the place of one that a checkpoint learned
        assert len({"gradient_cache_chunk_size", "gradient_cache_chunk_tokens"} & preset.values.keys()) == 1
        assert "head_learning_rate" in preset.lora


PLUGIN = """
from pydantic import Field

from vembed.losses.registry import Loss, LossRegistry
from vembed.utils.settings import Section


class Settings(Section):
    {key}


LossRegistry.register("{loss}", Loss(Settings, "nowhere:function"))
"""
