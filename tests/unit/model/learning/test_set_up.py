"""What learns: parts, layers, freezing, batch norm, gradient checkpointing, temperature."""

import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vembed.errors import ModelError
from vembed.model.detect import detect
from vembed.model.heads import heads_state
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings

EVERY = ["clip", "siglip", "bert", "vit", "dinov2", "timm", "composed"]


def gradients(model, items, seed=0):
    inputs = model.processor.finish(model.processor.prepare(items, "document"))
    torch.manual_seed(seed)
    vectors = model.model(inputs).vectors
    (vectors @ vectors.T).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_is_told_once_with_its_part_and_layer(name, model_of):
    model = model_of(name).model
    infos = parameter_infos(model)
    assert [info.name for info in infos] == [name for name, _ in model.named_parameters()]
    assert all(info.parameter is parameter for info, parameter in zip(infos, model.parameters(), strict=True))
    assert {info.part for info in infos} == {*model.spec.towers, "scale", *(["heads"] if name == "composed" else [])}
    for tower in model.spec.towers:
        layers = [info.layer for info in infos if info.part == tower]
        assert set(layers) == set(range(max(layers) + 1))
        assert {info.num_layers for info in infos if info.part == tower} == {max(layers)}
    for info in infos:
        assert (info.layer is None) == (info.part in ("heads", "scale"))
        if "embeddings" in info.name or "conv_stem" in info.name:
            assert info.layer == 0
        if "projection.weight" in info.name and "patch" not in info.name:
            assert info.layer == info.num_layers
    assert all(info.pretrained for info in infos if info.part in model.spec.towers)


def test_new_heads_and_scale_are_not_pretrained(model_of):
    fresh_parts = {info.part for info in parameter_infos(model_of("composed").model) if not info.pretrained}
    assert fresh_parts == {"heads", "scale"}
    assert all(info.pretrained for info in parameter_infos(model_of("clip").model))


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_that_learns_gets_a_gradient(name, fresh, items_for):
    model = fresh(name)
    model.model.train()
    found = gradients(model, items_for(model))
    learning = {name for name, p in model.model.named_parameters() if p.requires_grad}
    assert learning - found.keys() <= {"logit_scale", "logit_bias"}  # the loss uses those, not the model


@pytest.mark.parametrize("name", ["clip", "siglip", "composed", "vit_pair"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_frozen_tower_gets_no_gradient_and_no_dropout(name, tower, fresh, items_for):
    model = fresh(name, freeze=(tower,))
    model.model.train()
    assert not any(module.training for module in model.model.towers()[tower].modules())
    found = gradients(model, items_for(model))
    parts = {info.part for info in parameter_infos(model.model) if info.name in found}
    assert parts == ({"text", "vision"} - {tower}) | ({"heads"} if model.spec.family == "composed" else set())


def test_freezing_what_is_not_there_or_all_there_is_is_refused(fresh):
    with pytest.raises(ModelError, match="a text model has no vision tower"):
        fresh("bert", freeze=("vision",))
    with pytest.raises(ModelError, match="nothing is left to learn"):
        fresh("clip", freeze=("text", "vision"))
    assert fresh("composed", freeze=("text", "vision")).model.heads  # the heads learn


def test_batch_norms_keep_their_statistics_unless_asked(fresh, items_for):
    model = fresh("timm")
    norms = [module for module in model.model.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) > 5
    before = [norm.running_mean.clone() for norm in norms]
    model.model.train()
    assert model.model.training
    assert not any(norm.training for norm in norms)
    gradients(model, items_for(model))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(norm.weight.grad is not None for norm in norms)
    model.model.train_batch_norm = True
    model.model.train()
    gradients(model, items_for(model))
    assert not any(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


WITH_ADAPTERS = ("clip", "bert", "timm")  # in the quick tests


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        pytest.param(name, lora, marks=pytest.mark.slow if lora and name not in WITH_ADAPTERS else ())
        for name in (*EVERY, "vit_pair")
        for lora in (False, True)
    ],
)
def test_gradient_checkpointing_gives_the_same_gradients(name, lora, fresh, items_for):
    settings = {"use_lora": True, "lora_dropout": 0.2} if lora else {}
    if lora and name in ("timm", "composed"):
        settings |= {"lora_target_modules": ("conv_pwl", *(("query",) if name == "composed" else ()))}
    plain = fresh(name, **settings)
    checkpointed = fresh(name, gradient_checkpointing=True, **settings)
    for model in (plain, checkpointed):
        model.model.train()
    calls = _count_checkpoints(checkpointed.model)
    items = items_for(plain)
    expected, found = gradients(plain, items), gradients(checkpointed, items)
    assert expected.keys() == found.keys()
    total = math.sqrt(sum(g.square().sum().item() for g in expected.values()))
    difference = math.sqrt(sum((expected[key] - found[key]).square().sum().item() for key in expected))
    assert difference / total < 1e-5
    assert calls, "nothing was recomputed"


def _count_checkpoints(model: nn.Module) -> list[int]:
    """Notes every forward of a block that happens while a backward pass runs."""
    calls: list[int] = []

    def note(_module: nn.Module, _inputs: object) -> None:
        if torch._C._current_graph_task_id() != -1:
            calls.append(1)

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(note)
    return calls


def test_checkpointing_leaves_frozen_towers_alone(fresh, items_for):
    model = fresh("vit_pair", gradient_checkpointing=True, freeze=("text",))
    model.model.train()
    found = gradients(model, items_for(model))
    assert not any(name.startswith("text_tower") for name in found)
    assert any(name.startswith("vision_tower") for name in found)


def test_the_temperature_is_the_checkpoint_s_own_unless_given(fresh, folder_of):
    own = transformers.AutoModel.from_pretrained(folder_of("siglip"))
    model = fresh("siglip").model
    assert torch.equal(model.logit_scale, own.logit_scale.reshape(1))
    assert torch.equal(model.logit_bias, own.logit_bias.reshape(1))
    assert fresh("clip").model.logit_bias is None
    assert fresh("clip", temperature=0.2).model.logit_scale.item() == pytest.approx(math.log(5))
    for name, start in (("bert", 0.05), ("qwen3_vl_embedding", 0.03), ("colqwen2", 1.0)):
        assert fresh(name).model.logit_scale.item() == pytest.approx(-math.log(start))
    fixed = VisualRetrievalModel.from_pretrained(folder_of("clip"), learn_temperature=False)
    assert not fixed.model.logit_scale.requires_grad
    assert fresh("clip").model.logit_scale.requires_grad


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_new_heads_keep_what_the_towers_know(head, fresh, model_of, texts, pictures):
    model = fresh("composed", projection_head=head)
    assert model.model.has_new_heads
    assert model.spec.projection_dim == model.model.dim == 24
    ours, base = model.get_text_features(texts), model_of("bert").get_text_features(texts)
    assert torch.allclose(ours, base, atol=1e-6)  # square: the identity
    weight = model.model.heads["vision"].linear.weight
    assert torch.allclose(weight @ weight.T, torch.eye(24), atol=1e-5)  # narrower: orthonormal rows
    wide = fresh("composed", projection_head=head, projection_dim=300)
    ours, base = wide.get_image_features(pictures), model_of("timm").get_image_features(pictures)
    assert torch.allclose(ours @ ours.T, base @ base.T, atol=1e-5)  # wider: all angles kept


def test_a_kind_of_head_that_a_checkpoint_does_not_have_is_refused_though_it_is_the_default(fresh, tmp_path):
    fresh("composed", projection_head="mlp").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="projection_head linear: this checkpoint was built with mlp"):
        VisualRetrievalModel.from_pretrained(str(tmp_path), ModelSettings(projection_head="linear"))
    for settings in (ModelSettings(), ModelSettings(projection_head="mlp")):
        assert detect(str(tmp_path), settings).spec.projection_head == "mlp"


def test_heads_depend_on_the_seed_only(fresh):
    before = torch.get_rng_state()
    first, again, other = (heads_state(fresh("composed", seed=seed).model) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.vision.linear.weight"], other["heads.vision.linear.weight"])


def test_both_layers_of_an_mlp_head_learn(fresh, items_for):
    model = fresh("composed", projection_head="mlp")
    model.model.train()
    for _ in range(2):
        found = gradients(model, items_for(model))
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if name in found:
                    parameter.sub_(0.1 * found[name])
        model.model.zero_grad()
    assert all(found[name].abs().max() > 0 for name in found if name.startswith("heads."))


def test_no_keys_and_values_are_cached(fresh, folder_of):
    assert transformers.AutoModel.from_pretrained(folder_of("bert")).config.use_cache
    assert not fresh("bert").model.text_tower.model.config.use_cache


def test_settings_reach_a_model_that_is_built_by_hand(folder_of):
    model = VisualRetrievalModel.from_pretrained(settings=ModelSettings(model_name=folder_of("vit"), image_size=48))
    assert model.spec.image_size == 48
