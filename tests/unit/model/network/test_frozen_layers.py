"""Frozen layers: embeddings and first layers of a tower do not learn, have no adapters, and run without dropout."""

import peft
import pytest
import torch
import transformers
from torch import nn

from tests.gradients import take_gradients
from vembed.errors import ModelError
from vembed.model.adapters.files import ADAPTER_CONFIG
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.freezing import Freezing
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.training.optimizer import build_optimizer, freeze_by_rate
from vembed.training.settings import OptimizerSettings
from vembed.training.trials.overview import summarize_model

# Of each case: a tower, and what names of its frozen parameters hold where one layer is frozen.
FROZEN = {
    "clip": ("text", ("text_model.embeddings.", "text_model.encoder.layers.0.")),
    "clip_vision": ("vision", ("embeddings.", "pre_layrnorm.", "encoder.layers.0.")),
    "bert": ("text", ("embeddings.", "encoder.layer.0.")),
    "mpnet": ("text", ("embeddings.", "encoder.layer.0.", "relative_attention_bias.")),
    "modernbert": ("text", ("embeddings.", "layers.0.")),
    "t5": ("text", ("shared.", "block.0.")),
    "dinov2": ("vision", ("embeddings.", "encoder.layer.0.")),
    "timm": ("vision", ("conv_stem.", "timm_model.bn1.", "blocks.0.")),
    "vit_pair": ("vision", ("vision_tower.model.embeddings.", "vision_tower.model.layers.0.")),
    "qwen2_vl": ("text", ("embed_tokens.", "language_model.layers.0.")),
    "colbert": ("text", ("embeddings.", "encoder.layer.0.")),
    "colpali": ("vision", ("vision_tower.embeddings.", "vision_tower.encoder.layers.0.")),
}


def train_a_step(model, items):
    """One step of SGD in training mode; gives the names of the parameters that have a gradient."""
    model.model.train()
    inputs = model.processor.finish(model.processor.prepare(items, "document"))
    vectors = model.model(inputs).vectors.flatten(0, -2)
    (vectors @ vectors.T).square().mean().backward()
    gradients = take_gradients(model.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name in gradients:
                parameter.sub_(0.1 * gradients[name] / (gradients[name].norm() + 1e-6))
    return set(gradients)


@pytest.mark.parametrize("name", FROZEN)
def test_embeddings_and_first_layers_do_not_learn_and_the_others_do(name, fresh, items_for):
    tower, parts = FROZEN[name]
    model = fresh(name, freeze_layers={tower: 1})
    before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    learning = {key for key, parameter in fresh(name).model.named_parameters() if parameter.requires_grad}
    of_tower = {info.name for info in parameter_infos(model.model) if info.part == tower}
    frozen = {key for key in of_tower if any(part in key for part in parts)}
    assert len(frozen) >= 3
    assert {key for key, parameter in model.model.named_parameters() if parameter.requires_grad} == learning - frozen
    found = train_a_step(model, items_for(model))
    assert learning & of_tower - frozen <= found <= learning - frozen
    changed = {key for key, tensor in model.model.state_dict().items() if not tensor.equal(before[key])}
    assert changed <= found
    assert len(changed & of_tower) > len(found & of_tower) / 2


def test_frozen_layers_run_without_dropout_and_the_others_with(fresh):
    model = fresh("bert", freeze_layers={"text": 1}).model
    model.train()
    network = model.text_tower.model
    dropouts = {name: module.training for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert len(dropouts) >= 5
    assert {name for name, training in dropouts.items() if training} == {
        name for name in dropouts if name.startswith("encoder.layer.1.")
    }
    model.eval()
    assert not any(module.training for module in model.modules())


def test_positions_that_every_layer_reads_do_not_learn_either(fresh):
    model = fresh("mpnet", freeze_layers={"text": 1}).model
    shared = [info for info in parameter_infos(model) if "relative_attention_bias" in info.name]
    assert [(info.layer, info.parameter.requires_grad) for info in shared] == [(0, False)]


def test_a_frozen_layer_recomputes_nothing_under_gradient_checkpointing(fresh, items_for):
    model = fresh("clip", freeze_layers={"text": 1, "vision": 1}, gradient_checkpointing=True)
    recomputed = set()

    def note(name):
        return lambda *_: recomputed.add(name) if torch._C._current_graph_task_id() != -1 else None

    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note(name))
    with_graph = []
    model.model.backbone.text_model.encoder.layers[0].register_forward_hook(
        lambda _module, _inputs, output: with_graph.append(output.requires_grad)
    )
    train_a_step(model, items_for(model))
    assert with_graph
    assert not any(with_graph)
    assert {name.split("layers.")[1][0] for name in recomputed} == {"1"}


def test_adapters_lie_on_the_layers_that_learn(fresh, items_for):
    model = fresh("clip", freeze_layers={"text": 1}, use_lora=True)
    adapted = {name for name, _ in model.model.named_parameters() if ".lora_" in name}
    assert {name.split("layers.")[1][0] for name in adapted if "text_model" in name} == {"1"}
    assert {name.split("layers.")[1][0] for name in adapted if "vision_model" in name} == {"0", "1"}
    with pytest.raises(ModelError, match=r"no layer that learns is called 'layers.0.self_attn.q_proj'"):
        fresh("bert", freeze_layers={"text": 1}, use_lora=True, lora_target_modules=("layers.0.self_attn.q_proj",))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("name", ["bert", "dinov2"])
def test_an_adapter_above_frozen_layers_opens_here_and_in_plain_peft(name, fresh, folder_of, items_for, tmp_path):
    tower = "text" if name == "bert" else "vision"
    model = fresh(name, freeze_layers={tower: 1}, use_lora=True)
    items = items_for(model)
    for _ in range(2):
        train_a_step(model, items)
    expected = model.model.eval() and model.encode(items).vectors
    assert not torch.allclose(expected, fresh(name).encode(items).vectors, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    model.save_pretrained(tmp_path / "merged")
    for folder in ("adapter", "merged"):
        opened = VisualRetrievalModel.from_pretrained(str(tmp_path / folder))
        assert torch.allclose(opened.encode(items).vectors, expected, atol=1e-5)
    base = transformers.AutoModel.from_pretrained(folder_of(name))
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    merged = VisualRetrievalModel.from_pretrained(str(tmp_path / "merged")).model.backbones()[""].state_dict()
    assert all(torch.allclose(tensor, plain[key], atol=1e-6) for key, tensor in merged.items())
    assert (tmp_path / "adapter" / ADAPTER_CONFIG).is_file()
    again = ModelSettings(use_lora=True, freeze_layers={tower: 1})
    continued = VisualRetrievalModel.from_pretrained(str(tmp_path / "adapter"), again)
    assert torch.allclose(continued.encode(items).vectors, expected, atol=1e-5)


def test_an_adapter_on_frozen_layers_cannot_go_on_learning(fresh, items_for, tmp_path):
    model = fresh("bert", use_lora=True)
    train_a_step(model, items_for(model))
    model.save_pretrained(tmp_path, merge_adapters=False)
    settings = ModelSettings(use_lora=True, freeze_layers={"text": 1})
    with pytest.raises(ModelError, match=r"freeze_layers: the adapter .* is on frozen layers too.*adapter: merge"):
        VisualRetrievalModel.from_pretrained(str(tmp_path), settings)
    merging = settings.model_copy(update={"adapter": "merge"})
    merged = VisualRetrievalModel.from_pretrained(str(tmp_path), merging).model
    assert all("layer.1." in name for name, _ in merged.named_parameters() if ".lora_" in name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "bert",
            {"freeze_layers": {"text": 2}},
            r"has 2 layers; so at most 1 can be frozen .*, not 2.*freeze: \[text\]",
        ),
        ("bert", {"freeze_layers": {"vision": 1}}, "freeze_layers: a text model has no vision tower; it reads text"),
        ("clip", {"freeze_layers": {"text": 1}, "freeze": ("text",)}, "the whole text tower is frozen"),
    ],
)
def test_what_cannot_be_frozen_in_part_is_refused(name, settings, message, fresh):
    with pytest.raises(ModelError, match=message):
        fresh(name, **settings)


def test_a_rate_of_zero_beside_frozen_layers_is_refused(fresh):
    model = fresh("clip", freeze_layers={"text": 1}).model
    with pytest.raises(ModelError, match="the whole text tower is frozen"):
        freeze_by_rate(model, OptimizerSettings(learning_rates={"text": 0}))


def test_a_network_whose_layers_are_not_numbered_in_one_row_is_refused(model_of):
    model = fresh_of_linear_layers(model_of("bert").model)
    with pytest.raises(ModelError, match="are not numbered in one row"):
        model.freeze_layers({"text": 1})


def fresh_of_linear_layers(model):
    """A model of another class, whose network is one linear layer."""

    class Flat(type(model)):
        def towers(self):
            return {"text": nn.Linear(2, 2)}

    flat = Flat.__new__(Flat)
    flat.__dict__.update(model.__dict__, freezing=Freezing())
    return flat


def test_the_optimiser_and_the_overview_know_what_is_frozen(fresh):
    model = fresh("vit_pair", freeze_layers={"text": 1, "vision": 1}).model
    optimizer, groups = build_optimizer(model, OptimizerSettings(layer_decay=0.5))
    assert {group.layer for group in groups if group.part in ("text", "vision")} == {2}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    summary = summarize_model(model, "a test", ())
    assert summary.frozen_layers == ("text: embeddings and 1 of 2 layers", "vision: embeddings and 1 of 2 layers")
