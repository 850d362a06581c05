"""Nothing that lies in a folder runs, or is unpickled, because that folder says so: only the caller allows it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.pictures import write_pairs
from vembed.cli import app
from vembed.entrypoints.evaluate import evaluate
from vembed.errors import ConfigError, VembedError
from vembed.inference import Predictor
from vembed.trainer import Trainer

ROOT = Path(__file__).parents[2]


class Canary:
    """A file that is made by whatever runs: Python files that write it, and pickles that do."""

    def __init__(self, folder):
        self.file = folder / "was_run"

    def module(self, path, rest=""):
        path.write_text(f"open({str(self.file)!r}, 'w').close()\n{rest}")

    def pickle(self, path):
        path.write_bytes(pickle.dumps(self))

    def __reduce__(self):
        return open, (str(self.file), "w")

    @property
    def has_run(self):
        return self.file.exists()


@pytest.fixture
def canary(tmp_path):
    return Canary(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, clip_folder):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_pairs(folder / "data", 12, "t2i")
    settings = {"model_name": clip_folder, "data_path": data, "val_data_path": data, "max_steps": 2, "batch_size": 4}
    Trainer(
        {**settings, "output_dir": str(folder / "run"), "report": False, "bootstrap_samples": 0, "num_workers": 0}
    ).train()
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, which somebody else may have changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def add(file, **settings):
    """Put these lines in the place of the file's own."""
    kept = [line for line in file.read_text().splitlines() if line.split(":")[0] not in settings]
    file.write_text("\n".join([*kept, *(f"{key}: {json.dumps(value)}" for key, value in settings.items())]) + "\n")


def edit(path, **values):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def vembed(folder, *words):
    """`python -m vembed` in a folder."""
    command = [sys.executable, "-m", "vembed", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "."),
        ("evaluate", "config.yaml"),
        ("config", "show", "config.yaml"),
        ("doctor", "config.yaml"),
        ("doctor", "config.yaml", "--grad-check"),
    ],
    ids=" ".join,
)
def test_a_file_that_is_looked_at_imports_no_plugin(words, run, canary, monkeypatch):
    add(run / "config.yaml", plugins=["surprise"])
    canary.module(run / "surprise.py")
    monkeypatch.chdir(run)
    result = CliRunner().invoke(app, words)
    assert not canary.has_run
    assert "surprise" not in sys.modules
    assert "--plugins surprise" in result.output
    if words[0] != "config":
        assert result.exit_code == 2
        assert "config.yaml:" in result.stderr
        assert f"plugins: only you can allow code to run: {run}/surprise.py" in result.stderr


def test_the_caller_allows_a_plugin_or_goes_on_without(run, canary, monkeypatch):
    add(run / "config.yaml", plugins=["surprise_of_mine"])
    canary.module(run / "surprise_of_mine.py")
    monkeypatch.chdir(run)
    path = list(sys.path)
    assert CliRunner().invoke(app, ["evaluate", ".", "--plugins", "[]"]).exit_code == 0
    assert not canary.has_run
    assert sys.path == path
    assert evaluate(run, {"plugins": ["surprise_of_mine"]}).metrics.keys() == {"base", "tuned"}
    assert canary.has_run
    sys.path[:] = path
    sys.modules.pop("surprise_of_mine")


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickled_weights", "allow_paths_outside_image_root"])
def test_a_run_cannot_allow_itself_more(key, run):
    (run / "final" / "modeling_own.py").write_text("")
    add(run / "config.yaml", **{key: True})
    with pytest.raises(
        ConfigError, match=rf"config.yaml:\d+: {key}: only you can allow .*--{key} if you trust it"
    ) as caught:
        evaluate(run)
    assert (f"{run}/final/modeling_own.py" in str(caught.value)) == (key == "trust_remote_code")
    assert evaluate(run, {key: False}).paths is not None  # its own data all the same
    assert evaluate(run, [f"{key}=true"]).paths is not None


@pytest.mark.parametrize("key", ["trust_remote_code", "plugins"])
def test_a_config_for_training_may_allow_it(key, run, canary, monkeypatch):
    value = True if key == "trust_remote_code" else ["trained_with"]
    add(run / "config.yaml", output_dir=str(run / "new"), **{key: value})
    canary.module(run / "trained_with.py")
    monkeypatch.syspath_prepend(run)
    assert CliRunner().invoke(app, ["train", str(run / "config.yaml"), "--dry_run"]).exit_code == 0
    assert canary.has_run == (key == "plugins")
    sys.modules.pop("trained_with", None)


@pytest.mark.parametrize("how", ["command", "python"])
def test_a_run_that_goes_on_imports_no_plugin_that_its_folder_names(how, run, canary, tmp_path, monkeypatch):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    mine = {**settings, "output_dir": str(run), "save_steps": 1, "overwrite_output_dir": True}
    Trainer(mine).train()
    add(run / "config.yaml", plugins=["surprise_on_resume"])
    canary.module(tmp_path / "surprise_on_resume.py")
    monkeypatch.chdir(tmp_path)
    mine |= {"overwrite_output_dir": False}
    if how == "python":
        Trainer(mine).train(resume_from_checkpoint="latest")
    else:
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(mine))
        words = ["train", "my.yaml", "--output_dir", str(run), "--resume_from_checkpoint", "latest"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert not canary.has_run
    assert "surprise_on_resume" not in sys.modules
    assert "plugins: []" in (run / "config.yaml").read_text()  # written anew: it said something else


SHADOWS = ("yaml", "torch", "typer", "numpy", "PIL", "sentencepiece", "bitsandbytes", "flash_attn", "kernels", "shadow")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["evaluate .", "models --check final", "config show config.yaml"])
def test_modules_in_the_current_folder_shadow_none_of_ours(words, run, canary):
    for name in SHADOWS:
        canary.module(run / f"{name}.py")
    (run / "matplotlibrc").write_text("backend: module://shadow\ntext.usetex: true\n")
    (run / "sitecustomize.py").write_text((run / "yaml.py").read_text())
    result = vembed(run, *words.split())
    assert result.returncode == 0, result.stderr
    assert not canary.has_run


def own_code(folder, canary, file="config.json", **more):
    canary.module(folder / "surprise.py", "class X: pass\n")
    edit(folder / file, auto_map=dict.fromkeys(("AutoConfig", "AutoModel"), "surprise.X"), **more)


def dense(folder, canary):
    (folder / "2_Dense").mkdir()
    edit(folder / "2_Dense" / "config.json", in_features=32, out_features=8, activation_function="torch.nn.Identity")
    canary.pickle(folder / "2_Dense" / "pytorch_model.bin")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


def pickled(folder, canary):
    (folder / "model.safetensors").unlink()
    canary.pickle(folder / "pytorch_model.bin")


def index(folder, canary, name="evil.bin"):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    canary.pickle(folder / "evil.bin")
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map={"some.weight": name})


def adapter(folder, canary, base, **more):
    shutil.rmtree(folder)
    folder.mkdir()
    canary.module(folder / "surprise.py")
    canary.pickle(folder / "adapter_model.bin")
    edit(
        folder / "adapter_config.json",
        peft_type="LORA",
        base_model_name_or_path=str(base),
        target_modules=["query"],
        r=4,
        **more,
    )


ATTACKS = {
    "a model of its own code": ("bert", lambda folder, canary: own_code(folder, canary, model_type="surprise")),
    "own code beside a known type": ("bert", own_code),
    "own code of a tokenizer": (
        "bert",
        lambda folder, canary: own_code(folder, canary, "tokenizer_config.json", tokenizer_class="surprise.X"),
    ),
    "own code of an image processor": (
        "vit",
        lambda folder, canary: own_code(folder, canary, "preprocessor_config.json", image_processor_type="X"),
    ),
    "pickled weights": ("bert", pickled),
    "a list of shards that names a pickle": ("bert", index),
    "a list of shards that leads out": ("bert", lambda folder, canary: index(folder, canary, "../secret.safetensors")),
    "a pickled layer": ("bert", dense),
    "another class in modules.json": (
        "bert",
        lambda folder, canary: [
            canary.module(folder / "surprise.py"),
            (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "surprise.X"}]'),
        ],
    ),
    "a checkpoint of timm": (
        "timm",
        lambda folder, canary: [
            canary.pickle(folder / "evil.pth"),
            edit(folder / "config.json", model_args={"checkpoint_path": str(folder / "evil.pth")}),
        ],
    ),
    "an architecture of timm from a folder": (
        "timm",
        lambda folder, canary: edit(folder / "config.json", architecture=f"local-dir:{folder}"),
    ),
    "a kernel of a hub": (
        "bert",
        lambda folder, canary: edit(folder / "config.json", attn_implementation="evil/attention"),
    ),
    "a module that an adapter names": (
        "bert",
        lambda folder, canary: adapter(
            folder, canary, folder.parent / "base", megatron_config={"a": 1}, megatron_core="surprise"
        ),
    ),
    "a class that an adapter names": (
        "bert",
        lambda folder, canary: adapter(
            folder,
            canary,
            folder.parent / "base",
            auto_mapping={"base_model_class": "X", "parent_library": "surprise"},
        ),
    ),
    "an adapter's base that needs code": (
        "bert",
        lambda folder, canary: [
            own_code(folder.parent / "base", canary, model_type="surprise"),
            adapter(folder, canary, folder.parent / "base"),
        ],
    ),
    "an adapter of itself": ("bert", lambda folder, canary: adapter(folder, canary, folder)),
}
OPENS = {"own code beside a known type", "own code of a tokenizer"}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_folder_runs_nothing(name, canary, tmp_path, request, monkeypatch):
    kind, attack = ATTACKS[name]
    folder = tmp_path / "model"
    original = request.getfixturevalue(f"{kind}_folder")
    shutil.copytree(original, folder)
    shutil.copytree(original, tmp_path / "base")
    attack(folder, canary)
    monkeypatch.chdir(folder)
    if name in OPENS:
        Predictor(folder)  # what transformers has by itself is taken
    else:
        with pytest.raises(VembedError):
            Predictor(folder)
    (folder / "items.txt").write_text("a red shoe\n")
    for words in (
        ["models", "--check", str(folder)],
        ["encode", str(folder), "--input", "items.txt", "--output", "x.npy"],
        ["export", str(folder), "--merge", "--output", str(tmp_path / "exported")],
        ["config", "show", f"model_name={folder}"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
    assert not canary.has_run


def test_a_pickle_that_the_caller_allows_is_read_for_tensors_alone(bert_folder, tmp_path, canary):
    shutil.copytree(bert_folder, tmp_path / "model")
    pickled(tmp_path / "model", canary)
    result = CliRunner().invoke(app, ["models", "--check", str(tmp_path / "model"), "--allow_pickled_weights"])
    assert result.exit_code == 2
    assert "cannot be loaded" in result.stderr
    assert not canary.has_run


def test_a_model_that_needs_code_names_the_files_and_the_flag(bert_folder, tmp_path, canary):
    shutil.copytree(bert_folder, tmp_path / "model")
    own_code(tmp_path / "model", canary, model_type="new")
    result = CliRunner().invoke(app, ["models", "--check", str(tmp_path / "model"), "--encoder_mode", "text"])
    assert result.exit_code == 2
    assert "--trust_remote_code" in result.stderr
    assert "surprise" in result.stderr


def test_files_of_other_trainers_beside_a_checkpoint_are_not_read(run, canary):
    """As Trainer of transformers writes them; a resumed run reads safetensors and JSON."""
    checkpoint = max(run.glob("checkpoint-*"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.bin"):
        canary.pickle(checkpoint / name)
        canary.pickle(run / "final" / name)
    add(run / "config.yaml", output_dir=str(run), resume_from_checkpoint="latest", max_steps=2)
    result = CliRunner().invoke(app, ["train", str(run / "config.yaml")])
    assert result.exit_code in (0, 2), result.output
    assert CliRunner().invoke(app, ["evaluate", str(run)]).exit_code == 0
    assert not canary.has_run
