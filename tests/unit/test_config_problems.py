"""Every problem of a config is found, all at once, with the place where it was set and what would be right."""

import re

import pytest

from vembed.config import TRAIN, Purpose, load_config
from vembed.configuration.foreign_keys import RENAMED, TRANSLATED
from vembed.configuration.sections import every_key
from vembed.errors import ConfigError


def problems_of(path=None, overrides=(), **options):
    """The lines of the error that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **options)
    assert caught.value.exit_code == 2
    first, *rest = str(caught.value).splitlines()
    assert not rest or first == f"{len(rest)} problems in the configuration:"
    return [line.strip() for line in rest] or [first]


def test_all_problems_of_a_file_come_at_once_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(
        "batch_sze: 64\n"
        "epochs: 0\n"
        "mixed_precision: bf61\n"
        "use_lora: yes\n"
        "lora_r: 8\n"
        "data_path:\n"
        "  - path: pairs.jsonl\n"
        "    weigth: 2\n"
        "  - path: missing.jsonl\n"
    )
    assert problems_of("my.yaml", ["--global_batch_size", "64", "batch_size=32", "data_pth=x"]) == [
        "my.yaml:1: batch_sze: unknown key; did you mean batch_size?",
        "my.yaml:2: epochs: expected int, at least 1; got 0",
        "my.yaml:3: mixed_precision: expected auto, no, bf16 or fp16; got 'bf61'",
        "my.yaml:4: use_lora: expected true or false; got 'yes'",
        "my.yaml:8: data_path[0].weigth: unknown key; did you mean weight?",
        "command line: data_pth: unknown key; did you mean data_path?",
        "my.yaml:5: lora_r: has an effect only with use_lora: true; set that, or take lora_r out",
        "command line: global_batch_size: takes the place of batch_size (command line); keep one of the two",
    ]


LONG = "7" * 5000


WORDS = (
    f"epochs={LONG}",
    "epochs=1e300",
    "learning_rate=!!float abc",
    "use_lora=!!bool maybe",
    "learning_rates=" + "[" * 3000,
    f"learning_rates={{vision: {LONG}}}",
    "eval_k=!!set {1}",
    "batch_size=%TAG",
    f"model_name={LONG}",
    "model_name=~nobody",
    "model_name=a\0b",
    "model_name=\udcff",
    f"image_root={LONG}",
    f"data_path=./{LONG}",
)


@pytest.mark.parametrize("word", WORDS, ids=[str(number) for number in range(len(WORDS))])
def test_a_value_that_yaml_or_the_file_system_chokes_on_is_a_problem_of_its_key(word):
    (problem,) = problems_of(overrides=[word])
    assert word.split("=")[0] in problem
    assert problem.startswith("command line: ")


def test_deep_and_large_values_of_a_call_are_problems_too():
    deep = {}
    for _ in range(2000):
        deep = {"vision": deep}
    with pytest.raises(ConfigError, match="argument: cannot be read: "):
        load_config(overrides={"learning_rates": deep}, origin="argument")
    for setting in ({"epochs": 2**63}, {"seed": 10**300}, {"model_name": "\ud800"}):
        (problem,) = problems_of(overrides=setting, origin="argument")
        assert f"argument: {next(iter(setting))}: expected " in problem


def test_every_hint_for_another_trainers_name_leads_to_a_key_of_ours():
    ours = every_key().keys()
    assert len(RENAMED) + len(TRANSLATED) > 200
    assert not ours & (RENAMED.keys() | TRANSLATED.keys())
    assert not RENAMED.keys() & TRANSLATED.keys()
    assert {key for keys in RENAMED.values() for key in keys} <= ours
    for name, text in TRANSLATED.items():
        named = set(re.findall(r"\b(?:[a-z0-9]+_)+[a-z0-9]+\b", text)) - {name, "amp_bf16", "flash_attention_2"}
        assert named <= ours, name
        assert not (name in text and ": true is" in text) or set(re.findall(r"is ([a-z_]+): ", text)) <= ours, name


def test_every_value_that_a_hint_names_is_one_that_our_key_takes():
    written = [
        pair for text in TRANSLATED.values() for pair in re.findall(r"(?:is|with|freezes?) ([a-z_]+: [^ ,]+)", text)
    ]
    assert len(written) > 20
    for pair in written:
        key, value = pair.split(": ")
        assert key in every_key(), pair
        text = problems_of(overrides=[f"{key}={value}", "batch_size=0"])
        assert not any(f"{key}: expected" in line or "unknown" in line for line in text), pair


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lr", "did you mean learning_rate?"),
        ("num_train_epochs", "did you mean epochs?"),
        ("per_device_train_batch_size", "did you mean batch_size?"),
        ("per_device_eval_batch_size", "did you mean eval_batch_size?"),
        ("perDeviceTrainBatchSize", "did you mean batch_size?"),
        ("train-data", "did you mean data_path?"),
        ("fp16", "fp16: true is mixed_precision: fp16 here"),
        ("mini_batch_size", "did you mean gradient_cache_chunk_size?"),
        ("max_seq_length", "did you mean max_length?"),
        ("lr_scheduler_type", "did you mean lr_scheduler?"),
        ("target_modules", "did you mean lora_target_modules?"),
        ("scale", "scale is one over the temperature: scale: 20 is temperature: 0.05 here"),
        ("evaluation_strategy", "validation follows eval_steps; leave it out to validate once an epoch"),
    ],
)
def test_a_name_of_another_trainer_gets_our_name_for_it(name, text, tmp_path):
    (tmp_path / "my.yaml").write_text(f"{name}: 1\n")
    assert problems_of(tmp_path / "my.yaml") == [f"{tmp_path}/my.yaml:1: {name}: unknown key; {text}"]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"epochs": 3.5}, "epochs: expected int, at least 1; got 3.5"),
        ({"epochs": True}, "epochs: expected int, at least 1; got true"),
        ({"epochs": "3"}, "epochs: expected int, at least 1; got '3'"),
        ({"epochs": None}, "epochs: expected int, at least 1; got null"),
        ({"learning_rate": -1}, "learning_rate: expected float, at least 0, at most 10; got -1"),
        ({"learning_rate": "2e-5"}, "learning_rate: expected float, at least 0, at most 10; got '2e-5'"),
        ({"weight_decay": float("inf")}, "weight_decay: expected float, at least 0; got .inf"),
        ({"model_name": 7}, "model_name: expected text; got 7"),
        ({"num_workers": "many"}, "num_workers: expected int, at least 0, at most 256 or auto; got 'many'"),
        ({"num_workers": -1}, "num_workers: expected int, at least 0, at most 256 or auto; got -1"),
        ({"freeze": ["txt"]}, "freeze[0]: expected 'text' or 'vision'; got 'txt'"),
        ({"freeze": "text"}, "freeze: expected list of text or vision; got 'text'"),
        ({"freeze_layers": {"txt": 1}}, "freeze_layers.txt: expected 'text' or 'vision'; got 'txt'"),
        ({"freeze_layers": {"text": 0}}, "freeze_layers.text: expected greater than or equal to 1; got 0"),
        ({"freeze_layers": 4}, "freeze_layers: expected mapping of text or vision to int, at least 1; got 4"),
        ({"eval_k": [5, 0]}, "eval_k[1]: expected greater than or equal to 1; got 0"),
        ({"eval_k": []}, "eval_k: expected list of int, at least 1, not empty; got []"),
        (
            {"learning_rates": {"vison": 1e-5}},
            "learning_rates.vison: expected 'text', 'vision', 'heads' or 'scale'; got 'vison'",
        ),
        ({"learning_rates": {"text": -1}}, "learning_rates.text: expected greater than or equal to 0; got -1"),
        ({"column_mapping": {"query": 3}}, "column_mapping.query: expected a valid string or a valid array; got 3"),
        ({"data_path": [{"weight": 2}]}, "data_path[0].path: is missing"),
        ({"data_path": []}, "data_path: expected text or {path, ...} or list of {path, ...} / text, not empty; got []"),
        ({"seed": object}, "seed: expected int, at least 0; got "),
        (
            {"loss_type": "infonse"},
            "loss_type: there is no loss 'infonse'; did you mean infonce? Known: arcface, colbert, contrastive, ",
        ),
        ({"loss_type": "?"}, "loss_type: there is no loss '?'. Known: arcface, "),
        (
            {"preset": "clib"},
            "preset: there is no preset 'clib'; did you mean clip? known: clip, ",
        ),
        ({"preset": 3}, "preset: expected text; got 3"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_says_what_is_right(setting, text):
    (problem,) = problems_of(overrides=setting, origin="argument")
    assert problem.startswith(f"argument: {text}")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"model_name": "a/b", "text_model_name": "c/d", "image_model_name": "e/f"}, "takes the place of model_name"),
        ({"text_model_name": "c/d"}, "text_model_name: needs image_model_name too"),
        (
            {"freeze": ["text"], "freeze_layers": {"vision": 1, "text": 1}},
            "freeze_layers.text: the whole text tower is frozen by freeze; keep the one or the other",
        ),
        (
            {"gradient_cache_states_gib": 2},
            "gradient_cache_states_gib: has an effect only with a frozen tower (freeze, or a rate of 0); set that",
        ),
        ({"mrl_dims": [8]}, "mrl_dims: has an effect only with use_mrl: true or loss_type: mrl"),
        ({"use_mrl": True, "mrl_dims": [8, 4], "mrl_weights": [1.0]}, "mrl_weights: 1 weights for 2 mrl_dims"),
        ({"loss_type": "mrl", "mrl_dims": [8, 8]}, "mrl_dims: [8, 8] names a width twice"),
        (
            {"loss_type": "triplet", "triplet_mining": "explicit", "num_hard_negatives": 0},
            "num_hard_negatives: leaves out all explicit negatives, which the loss needs",
        ),
        ({"loss_type": "preference", "num_hard_negatives": 0}, "num_hard_negatives: leaves out all explicit negatives"),
        (
            {"use_distillation": True, "num_hard_negatives": 0},
            "num_hard_negatives: leaves out all explicit negatives, which distillation from scores in",
        ),
        ({"loss_type": "triplet", "margin": 0.3, "soft_margin": True}, "soft_margin: takes the place of margin"),
        ({"image_model_name": "c/d"}, "image_model_name: needs text_model_name too"),
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, "warmup_steps: takes the place of warmup_ratio (argument)"),
        ({"batch_size": 32, "global_batch_size": 64}, "global_batch_size: takes the place of batch_size"),
        (
            {"global_batch_size": 65, "gradient_accumulation_steps": 2},
            "65 does not divide by gradient_accumulation_steps 2",
        ),
        (
            {"overwrite_output_dir": True, "resume_from_checkpoint": "latest"},
            "takes the place of resume_from_checkpoint",
        ),
        ({"val_fraction": 0.1, "val_data_path": "a/b"}, "val_data_path: takes the place of val_fraction"),
        ({"train_batch_norm": True}, "train_batch_norm: has an effect only with use_gradient_cache: false"),
        ({"lora_alpha": 32}, "lora_alpha: has an effect only with use_lora: true"),
        ({"use_gradient_cache": False, "gradient_cache_chunk_size": 32}, "only with use_gradient_cache: true"),
        (
            {"gradient_cache_chunk_size": 4, "gradient_cache_chunk_tokens": 99},
            "gradient_cache_chunk_tokens: takes the place of gradient_cache_chunk_size",
        ),
        ({"use_gradient_cache": False, "gradient_cache_chunk_tokens": 32}, "only with use_gradient_cache: true"),
        ({"use_gradient_cache": False, "gradient_cache_retain": "auto"}, "only with use_gradient_cache: true"),
        ({"gradient_cache_retain": 1.5}, "expected float, at least 0, at most 1 or auto; got 1.5"),
        (
            {"gradient_cache_memory_gib": 4},
            "gradient_cache_memory_gib: has an effect only with gradient_cache_chunk_size, gradient_cache_chunk_tokens",
        ),
        ({"projection_head": "mlp"}, "projection_head: has an effect only with text_model_name"),
        ({"max_bad_fraction": 0.1}, "max_bad_fraction: has an effect only with on_bad_sample: skip"),
        ({"revision": "main"}, "revision: has an effect only with model_name"),
        ({"val_fraction": 0, "eval_steps": 5}, "eval_steps: has no effect without validation data"),
        ({"val_fraction": 0.0, "best_metric": "mrr"}, "best_metric: has no effect without validation data"),
        ({"fusion": "gatd"}, "fusion: there is no fusion 'gatd'; did you mean gated? Known: attention, gated, mlp"),
        ({"exclude_query_image": True}, "exclude_query_image: has no effect: queries of t2i show no picture"),
        ({"best_metric": "ndcg@7"}, "best_metric: 7 is none of the cut-offs measured; add it to eval_k [1, 5, 10]"),
        ({"best_metric": "mrr@10"}, "best_metric: expected recall@K, hit_rate@K, ndcg@K, mrr or map; got 'mrr@10'"),
    ],
)
def test_keys_that_contradict_or_have_no_effect_are_refused(setting, text):
    problems = problems_of(overrides=setting | {"preset": "none"}, origin="argument")
    assert any(text in problem for problem in problems)


@pytest.mark.parametrize(
    "setting",
    [
        {"train_batch_norm": False, "overwrite_output_dir": False, "resume_from_checkpoint": "latest"},
        {"train_batch_norm": True, "use_gradient_cache": False},
        {"warmup_steps": None, "warmup_ratio": 0.2},
        {"text_model_name": "c/d", "image_model_name": "e/f", "projection_dim": 8, "preset": "none"},
        {"text_model_name": "c/d", "image_model_name": "e/f", "model_name": None, "preset": "none"},
        {"lora_r": 4, "use_lora": True},
        {"on_bad_sample": "skip", "max_bad_fraction": 0.1},
        {"max_steps": 5, "epochs": 2},
        {"global_batch_size": 64, "gradient_accumulation_steps": 4},
        {"best_metric": "recall@3", "eval_k": [3]},
        {"exclude_query_image": True, "retrieval_mode": "m2i"},
        {"fusion": "gated"},
        {"exclude_query_image": True, "test_data_path": [{"path": "a/b"}, {"path": "c/d", "retrieval_mode": "m2i"}]},
    ],
)
def test_keys_that_go_together_are_accepted(setting):
    flat = load_config(overrides=setting).to_flat()
    assert {key: flat[key] for key in setting if key in flat and setting[key] is not None} == {
        key: value for key, value in setting.items() if key in flat and value is not None
    }


def test_every_key_that_names_another_names_one_that_exists():
    keys = every_key()
    named = [other for key in keys.values() for other in (*key.instead_of, *((key.condition or ())[:1]))]
    assert len(named) >= 14
    assert set(named) <= keys.keys()


def test_a_local_folder_has_no_revision(clip_folder):
    (problem,) = problems_of(overrides=["model_name=" + clip_folder, "revision=main"])
    assert "is a local folder, which has no revisions" in problem


def test_what_the_model_does_not_support_is_reported_with_the_rest(bert_folder):
    problems = problems_of(overrides={"model_name": bert_folder, "image_size": 224, "epochs": 0}, origin="argument")
    assert problems == [
        "argument: image_size: a text model reads no images",
        "argument: epochs: expected int, at least 1; got 0",
    ]


def test_a_model_that_is_not_there_is_reported_with_the_rest(tmp_path):
    problems = problems_of(overrides={"model_name": str(tmp_path / "none"), "epochs": 0}, origin="argument")
    assert len(problems) == 2
    assert problems[0].startswith("argument: model_name: ")


def test_training_needs_a_model_and_data():
    problems = problems_of(purpose=TRAIN)
    assert [problem.split(":")[0] for problem in problems] == ["model_name", "data_path"]
    towers = {"text_model_name": "a/b", "image_model_name": "c/d", "preset": "none", "data_path": "hub/name"}
    assert load_config(overrides=towers, purpose=TRAIN).data.data_path == "hub/name"


def test_data_that_is_not_there_is_an_error_but_a_hub_name_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    (problem,) = problems_of(overrides=["data_path=there.jsonl"])
    assert problem == f"command line: data_path: there is no file or folder there.jsonl (looked in {tmp_path})"
    (problem,) = problems_of(overrides=["test_data_path=[here.jsonl, {path: ./folder/there}]"])
    assert problem.startswith("command line: test_data_path[1].path: there is no file or folder ./folder/there")
    (problem,) = problems_of(overrides=["data_path=[{path: here.jsonl, image_root: pictures}]"])
    assert "data_path[0].image_root: there is no folder pictures" in problem
    (problem,) = problems_of(overrides=["image_root=pictures"])
    assert "image_root: there is no folder pictures" in problem
    assert load_config(overrides=["data_path=org/name", "val_data_path=here.jsonl"]).data.data_path == "org/name"
    assert load_config(overrides=["data_path=there.jsonl"], purpose=Purpose(existing=("test_data_path",)))


def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems_of("none.yaml") == [f"none.yaml: no such file (looked in {tmp_path})"]


def test_adapters_beside_4_bit_weights_are_saved_alone():
    asked = ["use_lora=true", "quantization=4bit"]
    with pytest.raises(ConfigError, match=r"quantization: an adapter .* set save_adapter_only: true"):
        load_config(overrides=asked)
    assert load_config(overrides=[*asked, "save_adapter_only=true"]).model.quantization == "4bit"


def test_empty_texts_are_no_values_but_of_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # the current folder is no answer
    (tmp_path / "a.jsonl").touch()
    found = problems_of(
        overrides={
            "model_name": "",
            "data_path": [{"path": "a.jsonl", "image_root": " "}, ""],
            "output_dir": "",
            "column_mapping": {"query": ""},
            "query_prompt": "",
        },
        purpose=Purpose(existing=()),
    )
    places = ("model_name", "data_path[0].image_root", "data_path[1]", "output_dir", "column_mapping.query")
    for place in places:
        assert any(f"{place}: is empty" in line for line in found), (place, found)
    assert not any("query_prompt" in line for line in found)
