"""Whatever is wrong with a model's files, opening it says which file, at once and without a traceback."""

import json
import os
import random
import resource
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from tests.cases import CASES
from vembed.errors import CheckpointError, ModelError, VembedError
from vembed.model.detect import detect
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings

LARGE = 10**9
VALUES = (0, -1, LARGE, 2**63, 1.5, "x", "", None, True, [], {}, [0], {"a": 1}, "../../x")
KINDS = ("clip", "bert", "vit", "timm", "sentence", "qwen2_vl", "colbert", "llava_onevision")


@pytest.fixture(autouse=True)
def _little_memory_and_time():
    """A file of a few bytes may ask for neither."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, before[1]))
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(120)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)


def _too_slow(_number, _frame):
    pytest.exit("a folder was opened for two minutes", returncode=1)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("originals")
    for kind in KINDS:
        CASES[kind].make(str(root / kind))
    return root


@pytest.fixture
def folder_of(originals, tmp_path):
    """A function that copies the folder of a kind."""

    def copied(kind):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(originals / kind, tmp_path / "model")
        return tmp_path / "model"

    return copied


def open_folder(folder, kind):
    return VisualRetrievalModel.from_pretrained(
        None, ModelSettings(**{**CASES[kind].settings, "model_name": str(folder)})
    )


def refusal(folder, kind):
    with pytest.raises(VembedError) as caught:
        open_folder(folder, kind)
    assert isinstance(caught.value, ModelError | CheckpointError)
    return str(caught.value)


def edit(path, *keys, value):
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


CONTENTS = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _data: b"",
    "a list": lambda _data: b"[1, 2]",
    "a number": lambda _data: b"5",
    "nested": lambda _data: b"[" * 100_000,
    "latin-1": lambda _data: b'{"a": "\xe9"}',
    "zeros": lambda _data: bytes(64),
}
FILES = (
    ("clip", "config.json"),
    ("clip", "tokenizer.json"),
    ("clip", "processor_config.json"),
    ("clip", "model.safetensors"),
    ("bert", "modules.json"),
    ("bert", "1_Pooling/config.json"),
    ("qwen2_vl", "tokenizer.json"),
)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_that_is_none_of_its_kind_is_named(kind, name, content, folder_of):
    file = folder_of(kind) / name
    file.write_bytes(CONTENTS[content](file.read_bytes()))
    assert name in refusal(file.parents[name.count("/")], kind)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(name, folder_of):
    folder = folder_of("bert")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{folder / name} is not a regular file" in refusal(folder, "bert")
    with pytest.raises(ModelError, match="is not a regular file"):
        detect(str(folder), ModelSettings())


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        ("clip", ("text_config", "hidden_size"), "config.json"),
        ("clip", ("text_config", "vocab_size"), "config.json describes a network of"),
        ("clip", ("vision_config", "num_hidden_layers"), "config.json says num_hidden_layers: 1,000,000,000"),
        ("clip", ("text_config", "num_hidden_layers"), "config.json says num_hidden_layers: 1,000,000,000"),
        ("bert", ("intermediate_size",), "config.json describes a network of"),
        ("bert", ("max_position_embeddings",), "config.json"),
        ("vit", ("image_size",), "config.json"),
        ("qwen2_vl", ("text_config", "num_hidden_layers"), "config.json"),
        ("qwen2_vl", ("vision_config", "depth"), "config.json says depth: 1,000,000,000"),
    ],
)
def test_a_network_of_any_size_is_not_built_for_a_config(kind, keys, words, folder_of):
    folder = folder_of(kind)
    edit(folder / "config.json", *keys, value=LARGE)
    assert words in refusal(folder, kind)


@pytest.mark.parametrize("value", [0, -1, "x", None, [], 1.5])
@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_numbers_that_are_none_name_the_config(key, value, folder_of):
    folder = folder_of("bert")
    edit(folder / "config.json", key, value=value)
    assert "config.json" in refusal(folder, "bert")


@pytest.mark.parametrize(
    ("kind", "file", "keys", "value"),
    [
        ("vit", "preprocessor_config.json", ("size", "height"), LARGE),
        ("vit", "preprocessor_config.json", ("size", "height"), -1),
        ("vit", "preprocessor_config.json", ("image_mean",), [0.5, 0.5]),
        ("vit", "preprocessor_config.json", ("image_std", 0), "x"),
        ("vit", "preprocessor_config.json", ("rescale_factor",), None),
        ("vit", "preprocessor_config.json", ("resample",), 99),
        ("qwen2_vl", "processor_config.json", ("image_processor", "patch_size"), 0),
        ("qwen2_vl", "processor_config.json", ("image_processor", "size", "shortest_edge"), LARGE),
        ("bert", "1_Pooling/config.json", ("pooling_mode",), {"a": 1}),
        ("bert", "modules.json", (0, "path"), "../other"),
        ("bert", "sentence_bert_config.json", ("max_seq_length",), -1),
    ],
)
def test_wrong_values_of_other_files_name_the_file(kind, file, keys, value, folder_of):
    folder = folder_of(kind)
    edit(folder / file, *keys, value=value)
    message = refusal(folder, kind)
    assert file in message or str(folder) in message


def test_shards_that_are_missing_foreign_or_cut_are_named(folder_of):
    folder = folder_of("bert")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: file for file, some in halves.items() for name in some}, "metadata": {}})
    )
    assert open_folder(folder, "bert").model.dim
    content = (folder / "two.safetensors").read_bytes()
    (folder / "two.safetensors").write_bytes(content[:-100])
    assert "two.safetensors" in refusal(folder, "bert")
    (folder / "two.safetensors").unlink()
    assert f"{index} names two.safetensors, which is not there" in refusal(folder, "bert")
    edit(index, "weight_map", value={})
    assert f"{index} has no weight_map" in refusal(folder, "bert")


def test_a_checkpoints_own_files_are_checked(folder_of, tmp_path):
    model = open_folder(folder_of("clip"), "clip")
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    open_folder(saved, "clip")
    content = (saved / "vembed_config.json").read_text()
    for key in ("max_length", "image_size", "pad_to", "projection_dim"):
        edit(saved / "vembed_config.json", "spec", key, value=LARGE)
        assert "vembed_config.json" in refusal(saved, "clip"), key
        (saved / "vembed_config.json").write_text(content)
    for broken in (b"", b"[]", b"{", b'{"spec": 5}'):
        (saved / "vembed_config.json").write_bytes(broken)
        assert "vembed_config.json" in refusal(saved, "clip")
    (saved / "vembed_config.json").write_text(content)
    heads = load_file(saved / "vembed_heads.safetensors")
    save_file({**heads, "logit_bias": heads["logit_scale"].repeat(1000)}, saved / "vembed_heads.safetensors")
    assert "vembed_heads.safetensors does not fit this model" in refusal(saved, "clip")
    (saved / "vembed_heads.safetensors").write_bytes(b"\xff" * 40)
    assert "vembed_heads.safetensors is damaged" in refusal(saved, "clip")


BASES = ("5", "[]", '{"model_name": 5}', '{"model_name": "a", "subfolder": "../.."}', "{", '{"b": 1}')


@pytest.mark.parametrize("content", BASES)
def test_the_name_of_a_base_is_checked(content, folder_of):
    folder = folder_of("bert")
    (folder / "vembed_base.json").write_text(content)
    assert "vembed_base.json" in refusal(folder, "bert")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("r", LARGE, "r"),
        ("r", 0, "r"),
        ("r", "x", "r"),
        ("rank_pattern", {"a": LARGE}, "a"),
        ("rank_pattern", 5, "rank_pattern"),
        ("modules_to_save", 5, "modules_to_save"),
    ],
)
def test_the_sizes_of_an_adapter_are_checked(key, value, named, folder_of, originals):
    folder = folder_of("bert")
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.unlink()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(originals / "bert"), "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "r": 4, key: value}))
    assert f"adapter_config.json: {named}: expected " in refusal(folder, "bert")


def test_layers_that_a_config_leaves_out_are_told(folder_of, caplog):
    folder = folder_of("bert")
    edit(folder / "config.json", "num_hidden_layers", value=1)
    open_folder(folder, "bert")
    assert "fewer layers than its weights" in caplog.text
    assert str(folder) in caplog.text


def paths_in(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    for key, entry in items:
        yield (*path, key)
        yield from paths_in(entry, (*path, key))


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_of_a_folder_ends_in_a_traceback(kind, folder_of):
    """Seeded: a value of a JSON file exchanged, or bytes of any file."""
    draw = random.Random(kind)
    refused = 0
    for _ in range(12):
        folder = folder_of(kind)
        file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        if file.suffix == ".json" and draw.random() < 0.7:
            places = list(paths_in(json.loads(file.read_text())))
            if places:
                edit(file, *draw.choice(places), value=draw.choice(VALUES))
        else:
            data = bytearray(file.read_bytes())
            for _ in range(3):
                data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
            file.write_bytes(data[: draw.randrange(1, len(data) + 1)])
        try:
            open_folder(folder, kind)
        except (ModelError, CheckpointError):
            refused += 1
    assert refused > 2
