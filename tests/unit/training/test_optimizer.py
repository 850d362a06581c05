from collections import Counter

import pytest
import torch

from tests import tiny
from vembed.errors import ConfigError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.training.optimizer import apply_schedule, build_optimizer, freeze_by_rate, rates_by_part
from vembed.training.settings import OptimizerSettings


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    built = {
        "clip": tiny.tiny_clip(root / "clip"),
        "siglip": tiny.tiny_siglip(root / "siglip"),
        "bert": tiny.tiny_bert(root / "bert", pooling="mean"),
        "vit": tiny.tiny_vit(root / "vit"),
        "dinov2": tiny.tiny_dinov2(root / "dinov2"),
        "timm": tiny.tiny_timm(root / "timm"),
    }
    return {name: ModelSettings(model_name=folder) for name, folder in built.items()} | {
        "composed": ModelSettings(text_model_name=built["bert"], image_model_name=built["vit"])
    }


def load(settings, **changes):
    return VisualRetrievalModel.from_pretrained(None, settings.model_copy(update=changes)).model


def rate_and_decay(model, settings):
    """Parameter name -> (rate, weight decay) in the optimiser."""
    optimizer, _ = build_optimizer(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


WITH_LINEAR_LAYERS = ["clip", "siglip", "bert", "vit", "dinov2", "composed"]
FAMILIES = [*WITH_LINEAR_LAYERS, "timm"]


@pytest.mark.parametrize(
    ("name", "use_lora"), [(name, False) for name in FAMILIES] + [(name, True) for name in WITH_LINEAR_LAYERS]
)
def test_every_trainable_parameter_is_in_exactly_one_group(folders, name, use_lora):
    model = load(folders[name], use_lora=use_lora)
    for settings in (OptimizerSettings(layer_decay=1.0), OptimizerSettings(layer_decay=0.5)):
        assert freeze_by_rate(model, settings) == []
        optimizer, groups = build_optimizer(model, settings)
        seen = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert seen == Counter(id(parameter) for parameter in trainable)
        assert sum(group.num_parameters for group in groups) == sum(parameter.numel() for parameter in trainable)
        assert sum(group.num_tensors for group in groups) == len(trainable) > 1
        assert [group.learning_rate for group in groups] == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_decay_on_biases_norms_and_temperature(folders, name):
    model = load(folders[name])
    decays = {name: decay for name, (_, decay) in rate_and_decay(model, OptimizerSettings(weight_decay=0.3)).items()}
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    for parameter, decay in decays.items():
        module, _, leaf = parameter.rpartition(".")
        plain = "Norm" in kinds[module] or leaf == "bias" or parameter.startswith("logit_")
        if plain:
            assert decay == 0, parameter
        elif leaf == "weight":
            assert decay == 0.3, parameter
    assert set(decays.values()) == {0, 0.3}


def test_new_weights_and_temperature_have_the_head_rate_and_pretrained_ones_their_own(folders):
    model = load(folders["composed"])
    settings = OptimizerSettings(learning_rate=1e-5, head_learning_rate=2e-3)
    rates = {name: rate for name, (rate, _) in rate_and_decay(model, settings).items()}
    assert rates["logit_scale"] == 2e-3
    assert {rate for name, rate in rates.items() if name.startswith("heads.")} == {2e-3}
    assert {rate for name, rate in rates.items() if "_tower." in name} == {1e-5}


def test_adapters_have_the_head_rate(folders):
    model = load(folders["bert"], use_lora=True)
    settings = OptimizerSettings(learning_rate=1e-5, head_learning_rate=2e-3)
    rates = {name: rate for name, (rate, _) in rate_and_decay(model, settings).items()}
    adapters = [name for name in rates if ".lora_" in name]
    assert len(adapters) >= 8
    assert {rates[name] for name in adapters} == {2e-3}


def test_rates_by_part_override_both(folders):
    model = load(folders["composed"])
    rates = {"vision": 3e-4, "heads": 5e-3, "scale": 7e-3}
    settings = OptimizerSettings(learning_rate=1e-5, head_learning_rate=2e-3, learning_rates=rates)
    optimizer, _ = build_optimizer(model, settings)
    assert rates_by_part(optimizer) == {"text": 1e-5, **rates}
    apply_schedule(optimizer, 0.5)
    assert rates_by_part(optimizer) == {"text": 5e-6, "vision": 1.5e-4, "heads": 2.5e-3, "scale": 3.5e-3}
    apply_schedule(optimizer, 0.5)
    assert rates_by_part(optimizer)["text"] == 5e-6


def test_layer_decay_lowers_the_rate_layer_by_layer_from_the_top(folders):
    model = load(folders["bert"])
    settings = OptimizerSettings(learning_rate=1e-2, layer_decay=0.5)
    rates = {name: rate for name, (rate, _) in rate_and_decay(model, settings).items()}
    top = {rate for name, rate in rates.items() if ".layer.1." in name}
    below = {rate for name, rate in rates.items() if ".layer.0." in name}
    embeddings = {rate for name, rate in rates.items() if ".embeddings." in name}
    assert (top, below, embeddings) == ({1e-2}, {5e-3}, {2.5e-3})


def test_rate_zero_freezes_and_is_reported(folders):
    model = load(folders["composed"])
    assert freeze_by_rate(model, OptimizerSettings(learning_rates={"text": 0})) == ["text"]
    frozen = {info.part for info in parameter_infos(model) if not info.parameter.requires_grad}
    assert frozen == {"text"}
    model.train()
    assert not any(module.training for module in model.towers()["text"].modules())
    assert "text" not in rates_by_part(build_optimizer(model, OptimizerSettings(learning_rates={"text": 0}))[0])


def test_rate_zero_of_pretrained_weights_leaves_heads_learning(folders):
    model = load(folders["composed"])
    assert freeze_by_rate(model, OptimizerSettings(learning_rate=0)) == ["text", "vision"]
    assert {info.part for info in parameter_infos(model) if info.parameter.requires_grad} == {"heads", "scale"}


@pytest.mark.parametrize("settings", [{"learning_rate": 0}, {"learning_rates": {"text": 0, "vision": 0}}])
def test_a_model_of_which_only_the_temperature_would_learn_is_refused(folders, settings):
    with pytest.raises(ConfigError, match="nothing would learn"):
        freeze_by_rate(load(folders["clip"]), OptimizerSettings(**settings))


def test_rates_of_parts_that_are_absent_or_frozen_are_refused_together(folders):
    model = load(folders["clip"], freeze=("text",))
    rates = {"heads": 1e-3, "text": 1e-5, "vision": 1e-5}
    with pytest.raises(
        ConfigError, match=r"no part 'heads'; it has scale, text, vision\n.*text has a rate but does not"
    ):
        freeze_by_rate(model, OptimizerSettings(learning_rates=rates))
    freeze_by_rate(model, OptimizerSettings(learning_rates={"text": 0, "vision": 1e-5}))


def test_weight_decay_is_decoupled_from_the_gradient(folders):
    """AdamW: a parameter whose gradient is zero shrinks by rate x decay, one without decay stays."""
    model = load(folders["bert"])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, _ = build_optimizer(model, OptimizerSettings(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = 0
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 and parameter.requires_grad else 1
        torch.testing.assert_close(parameter, before[name] * factor)
        shrunk += factor != 1
    assert shrunk > 10
