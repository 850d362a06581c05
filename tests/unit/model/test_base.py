"""What a family may override of BaseEmbeddingModel: each hook of its list, by a toy, and nothing else."""

import importlib
import json
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vembed.model.backbones
import vembed.model.late_interaction
from vembed.errors import ModelError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.folder.find import ModelFolders
from vembed.model.learning.lora import add_adapters
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.freezing import keeps_states, with_fixed_features
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.types import Embeddings, Inputs, Ragged

HOOKS = re.findall(r"^ {4}- (\w+):", BaseEmbeddingModel.__doc__, re.MULTILINE)
PAGE = Path(__file__).resolve().parents[3] / "docs" / "add-a-model.md"


class Network(nn.Module):
    """A transformers model as the base knows one: two towers, a projection and a file."""

    def __init__(self):
        super().__init__()
        self.words = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        self.sight = nn.Sequential(nn.Linear(4, 2))
        self.beside = nn.Linear(3, 3)
        self.projection = nn.Linear(2, 2)
        self.config = SimpleNamespace(hidden_size=3)


class Toy(BaseEmbeddingModel):
    """Towers of unequal width and heads that make them equal; overrides what a model with towers apart may."""

    parts: ClassVar = {"network.sight": "vision", "network.projection": "vision", "network.": "text"}
    image_tensors = ("pixel_values", "sizes")
    start_temperature = 0.5

    def __init__(self, spec):
        super().__init__(spec)
        self.network = Network()
        self.to_two = nn.Linear(3, 2)

    @classmethod
    def load(cls, spec, folders, settings, seed):
        torch.manual_seed(seed)
        return cls(spec)

    @property
    def dim(self):
        return 2

    def towers(self):
        return {"text": self.network.words, "vision": self.network.sight}

    def backbones(self):
        return {"": self.network}

    def embed_text(self, input_ids, attention_mask):
        return (self.network.words(input_ids) * attention_mask[:, :, None]).sum(dim=1)

    def embed_images(self, images):
        return self.network.projection(self.network.sight(images["pixel_values"])) * images["sizes"]

    def head(self, tower, features):
        return self.to_two(features) if tower == "text" else features

    def fixed_towers(self):
        return tuple(tower for tower in super().fixed_towers() if tower != "vision")

    def part_of(self, name):
        return "heads" if name.startswith("to_two.") else super().part_of(name)

    def takes_adapter(self, name):
        return name == "network.words.1"

    def learns_whole(self, name):
        return name != "network.projection"

    def backbone_state(self, subfolder):
        return {f"model.{name}": tensor for name, tensor in super().backbone_state(subfolder).items()}

    def save_backbone(self, subfolder, folder):
        save_file(self.backbone_state(subfolder), folder / "weights.safetensors")

    def sentence_files(self, subfolder):
        return {"modules.json": [{"type": "toy"}], "1_Dense/config.json": {}}

    def layer_states(self, subfolder):
        return {"1_Dense": {"linear.weight": self.to_two.weight}}


class TokenToy(Toy):
    """A vector per token, by a forward of its own, which goes on from what a frozen text tower gave for each."""

    has_towers_apart = False
    keeps_states_of = "text"

    def forward(self, inputs):
        return self._embeddings(inputs, self.to_two)

    def tower_features(self, inputs):
        return self._embeddings(inputs, nn.Identity())

    def with_fixed_states(self, inputs):
        with torch.no_grad():
            states = self._states(inputs)
        kept = {"states": Ragged(states, inputs.tensors["input_ids"].counts)}
        return Inputs(inputs.num_rows, {"attention_mask": inputs.tensors["attention_mask"], **kept})

    def _states(self, inputs):
        if "states" in inputs.tensors:
            return inputs.tensors["states"].values
        return self.network.words(inputs.tensors["input_ids"].values)

    def _embeddings(self, inputs, head):
        return Embeddings(head(self._states(inputs)), inputs.tensors["attention_mask"].values.bool())


TOYS = (Toy, TokenToy)


def made(kind=Toy, family="dual"):
    spec = ModelSpec(family=family, preset="clip", towers=("text", "vision"), pooling={"text": "own", "vision": "own"})
    return kind.load(spec, ModelFolders(None, None, None), ModelSettings(), seed=0)


@pytest.fixture
def inputs():
    """A text row, an image row of two pictures, and a row of both."""
    texts, images = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 1])
    tensors = {
        "input_ids": Ragged(torch.tensor([[1, 2], [3, 0]]), texts),
        "attention_mask": Ragged(torch.tensor([[1, 1], [1, 0]]), texts),
        "pixel_values": Ragged(torch.randn(3, 4), images),
        "sizes": Ragged(torch.tensor([[1.0], [2.0], [3.0]]), images),
    }
    return Inputs(3, tensors)


def overridden(kind):
    return {name for name in vars(kind) if name in dir(BaseEmbeddingModel) and not name.startswith("__")}


def families():
    """Every class below BaseEmbeddingModel in the package."""
    for package in (vembed.model.backbones, vembed.model.late_interaction):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found, waiting = [], [BaseEmbeddingModel]
    while waiting:
        below = [kind for kind in waiting.pop().__subclasses__() if kind.__module__.startswith("vembed.")]
        found += below
        waiting += below
    return sorted(set(found), key=lambda kind: kind.__qualname__)


def test_the_list_of_hooks_is_what_toys_override_and_the_page_tells():
    assert len(HOOKS) == len(set(HOOKS)) == 23
    assert set().union(*map(overridden, TOYS)) == set(HOOKS)
    section = PAGE.read_text(encoding="utf-8").split("## What a class may override")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(HOOKS)


def test_families_override_hooks_alone_and_nothing_private():
    kinds = families()
    assert len(kinds) >= 12
    for kind in kinds:
        assert overridden(kind) <= set(HOOKS), kind
    assert set().union(*map(overridden, kinds)) == set(HOOKS)


def test_the_base_has_nothing_private_and_few_methods():
    own = [name for name, value in vars(BaseEmbeddingModel).items() if callable(value) or hasattr(value, "__get__")]
    methods = [name for name in own if name == "__init__" or not name.startswith("__")]
    assert 20 <= len(methods) <= 25
    assert [name for name in vars(BaseEmbeddingModel) if re.match(r"_[a-z]", name)] == []


def test_towers_heads_and_rows_are_the_toys(inputs):
    model = made().eval()
    assert model.logit_scale.exp().item() == pytest.approx(2)
    ids, pixels = inputs.tensors["input_ids"].values, inputs.tensors["pixel_values"].values
    words = model.network.words(ids)
    texts = torch.stack([words[0].sum(dim=0), words[1, 0]])  # [texts, 3]
    images = model.network.projection(model.network.sight(pixels)) * torch.tensor([[1.0], [2.0], [3.0]])
    unit = nn.functional.normalize
    embedded, seen = unit(model.to_two(texts)), unit(images)
    expected = torch.stack([embedded[0], unit(seen[:2].mean(dim=0), dim=0), unit(embedded[1] + seen[2], dim=0)])
    assert torch.allclose(model(inputs).vectors, expected, atol=1e-6)
    text_only = Inputs(2, {name: Ragged(inputs.tensors[name].values, torch.tensor([1, 1])) for name in _TEXT})
    assert torch.allclose(model.tower_features(text_only).vectors, unit(texts), atol=1e-6)


def test_parts_are_the_toys():
    found = {info.name: info.part for info in parameter_infos(made())}
    assert found["network.sight.0.weight"] == found["network.projection.bias"] == "vision"
    assert found["network.words.0.weight"] == "text"
    assert (found["to_two.weight"], found["logit_scale"]) == ("heads", "scale")


def test_a_frozen_tower_of_which_the_toy_says_so_is_not_fixed(inputs):
    model = made()
    model.freeze(["text", "vision"])
    shortened = with_fixed_features(model, inputs)
    assert set(shortened.tensors) == {"text_features", "pixel_values", "sizes"}
    assert torch.allclose(model(shortened).vectors, model(inputs).vectors, atol=1e-6)


def test_states_of_a_frozen_tower_are_the_toys(inputs):
    model = made(TokenToy)
    assert not keeps_states(model)
    assert with_fixed_features(model, inputs) is inputs
    model.freeze(["text"])
    assert keeps_states(model)
    kept = with_fixed_features(model, inputs)
    assert set(kept.tensors) == {"attention_mask", "states"}
    assert torch.equal(model(kept).vectors, model(inputs).vectors)
    assert model(kept).vectors.shape == (2, 2, 2)
    assert model.tower_features(kept).vectors.shape == (2, 2, 3)
    assert made(TokenToy).fixed_towers() == ()


def test_what_a_family_does_not_say_is_refused(inputs):
    class Bare(BaseEmbeddingModel):
        keeps_states_of = "text"

    spec = made().spec
    model = Bare(spec)
    refusals = [
        (lambda: Bare.load(spec, ModelFolders(None, None, None), ModelSettings(), 0), "Bare cannot be loaded"),
        (lambda: model.dim, "Bare does not say how wide"),
        (lambda: model.embed_text(*[torch.ones(1, 1)] * 2), "it was given a text"),
        (lambda: model.embed_images({}), "it was given an image"),
        (lambda: model.with_fixed_states(inputs), "Bare does not say what it keeps of its text tower"),
    ]
    for ask, message in refusals:
        with pytest.raises(ModelError, match=message):
            ask()


def test_adapters_lie_where_the_toy_says():
    model = made()
    add_adapters(model, ModelSettings(use_lora=True), seed=0)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0] for name in learning if ".lora_" in name} == {"network.words.1"}
    assert {name for name in learning if ".lora_" not in name} == {
        *("logit_scale", "to_two.weight", "to_two.bias", "network.beside.weight", "network.beside.bias")
    }


def test_a_checkpoint_holds_what_the_toy_writes(fresh, tmp_path):
    clip = fresh("clip")
    model = made(family=clip.spec.family)
    VisualRetrievalModel(model, clip.processor).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    assert weights.keys() == {f"model.{name}" for name in model.network.state_dict()}
    assert json.loads((tmp_path / "modules.json").read_text()) == [{"type": "toy"}]
    assert torch.equal(load_file(tmp_path / "1_Dense" / "model.safetensors")["linear.weight"], model.to_two.weight)
    assert load_file(tmp_path / "vembed_heads.safetensors").keys() == {"logit_scale", "to_two.weight", "to_two.bias"}


_TEXT = ("input_ids", "attention_mask")
