"""What a model gives has one fingerprint, in whatever folder it lies; whatever changes it has another."""

import json
import shutil

import pytest
import torch

from vembed.errors import CheckpointError
from vembed.model.folder.fingerprint import embedding_fingerprint
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings


@pytest.fixture
def folder(tmp_path, bert_folder, vit_folder):
    """Weights in two subfolders, heads beside them."""
    settings = ModelSettings(text_model_name=bert_folder, image_model_name=vit_folder)
    VisualRetrievalModel.from_pretrained(None, settings).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def print_of(folder, **settings):
    model = VisualRetrievalModel.from_pretrained(str(folder), ModelSettings.model_validate(settings))
    return embedding_fingerprint(folder, model.spec)


def test_a_copy_has_the_same_one_whatever_a_run_notes_beside_it(folder, tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    notes = json.loads((copy / "vembed_config.json").read_text())
    (copy / "vembed_config.json").write_text(json.dumps({**notes, "step": 7}))
    (copy / "training_state.json").write_text("{}")
    (copy / "README.md").write_text("a card")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "x.json").write_text("{}")
    assert print_of(copy) == print_of(folder)


def test_another_use_is_another_model(folder):
    plain = print_of(folder)
    assert len({plain, print_of(folder, query_prompt="find "), print_of(folder, max_length=7)}) == 3


@pytest.mark.parametrize("part", ["text", "vision", "heads"])
def test_every_weight_counts(folder, part):
    before = print_of(folder)
    model = VisualRetrievalModel.from_pretrained(str(folder))
    with torch.no_grad():
        changed = [info.parameter for info in parameter_infos(model.model) if info.part == part]
        assert changed
        changed[-1].add_(0.01)
    model.save_pretrained(folder)
    assert print_of(folder) != before


@pytest.mark.parametrize("name", ["text/tokenizer.json", "image/preprocessor_config.json"])
def test_every_file_of_the_processor_counts(folder, name):
    spec = VisualRetrievalModel.from_pretrained(str(folder)).spec
    before = embedding_fingerprint(folder, spec)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, "added": 1}))
    assert embedding_fingerprint(folder, spec) != before


def test_damaged_weights_are_told(folder):
    spec = VisualRetrievalModel.from_pretrained(str(folder)).spec
    (folder / "vembed_heads.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"vembed_heads.safetensors is damaged"):
        embedding_fingerprint(folder, spec)
