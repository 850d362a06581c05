"""LoRA adapters learn, are written as plain weights, and refuse names that fit nothing."""

import pytest
import torch
import transformers
from torch import nn

from vembed.errors import ModelError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings

WITH_LINEAR = ["clip", "siglip", "bert", "vit", "dinov2", "vit_pair"]


def loss_of(model, items):
    inputs = model.processor.finish(model.processor.prepare(items, "document"))
    vectors = model.model(inputs).vectors.flatten(0, -2)  # of rows, or of their tokens
    return (vectors @ vectors.T).square().mean()


def train_a_step(model, items):
    model.model.train()
    loss_of(model, items).backward()
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad / (parameter.grad.norm() + 1e-6))
    model.model.eval()


@pytest.mark.parametrize("name", WITH_LINEAR)
def test_an_adapter_starts_as_nothing_learns_and_is_merged_when_written(name, fresh, model_of, items_for, tmp_path):
    model, base = fresh(name, use_lora=True), model_of(name)
    items = items_for(base)
    start = base.encode(items).vectors
    assert torch.allclose(model.encode(items).vectors, start, atol=1e-6)
    train_a_step(model, items)
    train_a_step(model, items)  # B is zero before the first step, so A learns from the second on
    adapted = model.encode(items).vectors
    assert (adapted - start).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    merged = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert torch.allclose(merged.encode(items).vectors, adapted, atol=1e-5)
    assert torch.equal(model.encode(items).vectors, adapted), "writing changed the model that is being trained"
    assert not [key for key in merged.model.state_dict() if "lora" in key or "base_layer" in key]
    for subfolder, backbone in base.model.backbones().items():
        plain = transformers.AutoModel.from_pretrained(tmp_path / subfolder)
        assert type(plain) is type(backbone)


@pytest.mark.parametrize("name", WITH_LINEAR)
def test_only_adapters_heads_scale_and_outer_projections_learn(name, fresh):
    model = fresh(name, use_lora=True).model
    infos = parameter_infos(model)
    assert sorted(info.name for info in infos) == sorted(name for name, _ in model.named_parameters())
    learning = {info.name: info for info in infos if info.parameter.requires_grad}
    adapters = [info for info in learning.values() if ".lora_" in info.name]
    assert {info.part for info in adapters} == set(model.spec.towers)
    assert not any(info.pretrained for info in adapters)
    others = {name for name in learning if ".lora_" not in name}
    expected = {"logit_scale", "logit_bias"} | {"heads.text.linear.weight", "heads.vision.linear.weight"}
    expected |= {"backbone.text_projection.weight", "backbone.visual_projection.weight"}
    assert others == expected & {info.name for info in infos}


def test_every_adapter_takes_part_in_the_embedding(fresh, items_for):
    for name in ("clip", "siglip", "bert", "vit"):
        model = fresh(name, use_lora=True)
        model.model.train()
        items = items_for(model)
        loss_of(model, items).backward()
        silent = [
            info.name
            for info in parameter_infos(model.model)
            if "lora_B" in info.name and (info.parameter.grad is None or info.parameter.grad.abs().max() == 0)
        ]
        assert silent == []


def test_adapters_depend_on_the_seed_only(fresh):
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed() % 1000)
        before = torch.get_rng_state()
        state = fresh("bert", use_lora=True, seed=seed).model.state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        return {name: tensor for name, tensor in state.items() if "lora_A" in name}

    first, again, other = adapters(1), adapters(1), adapters(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_named_layers_get_the_adapters(fresh):
    model = fresh("bert", use_lora=True, lora_target_modules=("query", "output.dense"), lora_r=4).model
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert all(name.endswith(("query", "output.dense")) for name in adapted)
    assert len(adapted) == 2 * 3  # per layer: query, attention.output.dense, output.dense
    assert {p.shape[0] for name, p in model.named_parameters() if ".lora_A" in name} == {4}


def test_convolutions_can_be_named(fresh, items_for, tmp_path):
    model = fresh("timm", use_lora=True, lora_target_modules=("conv_head", "conv_pwl"))
    items = items_for(model)
    start = model.encode(items).vectors
    train_a_step(model, items)
    adapted = model.encode(items).vectors
    assert (adapted - start).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    assert torch.allclose(VisualRetrievalModel.from_pretrained(str(tmp_path)).encode(items).vectors, adapted, atol=1e-5)


def test_unknown_layers_are_refused_with_near_ones(fresh):
    with pytest.raises(ModelError, match=r"no layer that learns is called 'querry'.*query"):
        fresh("bert", use_lora=True, lora_target_modules=("querry", "value"))


def test_a_tower_without_linear_layers_asks_for_names(fresh):
    with pytest.raises(ModelError, match=r"the vision tower .* has no linear layers .*freeze: \[vision\]"):
        fresh("composed", use_lora=True)
    model = fresh("composed", use_lora=True, freeze=("vision",)).model
    assert {info.part for info in parameter_infos(model) if ".lora_" in info.name} == {"text"}


def test_frozen_towers_get_no_adapters_and_stay_frozen(fresh):
    model = fresh("clip", use_lora=True, freeze=("text",)).model
    parts = {info.part for info in parameter_infos(model) if info.parameter.requires_grad}
    assert parts == {"vision", "scale"}


def test_layers_that_attention_reads_without_calling_get_none(fresh):
    model = fresh("siglip").model
    inside = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    assert inside, "SigLIP pools images with nn.MultiheadAttention; the test needs one"
    adapted = [name for name, _ in fresh("siglip", use_lora=True).model.named_parameters() if ".lora_" in name]
    assert not [name for name in adapted if name.startswith(tuple(inside))]
    with pytest.raises(ModelError, match="out_proj'"):
        fresh("siglip", use_lora=True, lora_target_modules=("attention.out_proj",))


def test_a_further_stage_may_adapt_an_adapted_model(fresh, items_for, tmp_path):
    model = fresh("bert", use_lora=True)
    train_a_step(model, items_for(model))
    model.save_pretrained(tmp_path)
    stage = VisualRetrievalModel.from_pretrained(str(tmp_path), ModelSettings(use_lora=True))
    assert torch.allclose(stage.encode(items_for(model)).vectors, model.encode(items_for(model)).vectors, atol=1e-5)


def test_layers_without_an_adapter_do_not_learn_and_keep_their_dropout(fresh):
    """Until `freeze_layers` takes it off."""
    model = fresh("bert", use_lora=True, lora_target_modules=["layer.1.attention.self.query"]).model
    model.train()
    (below,) = (module for name, module in model.named_modules() if name.endswith("layer.0.output.dropout"))
    assert below.training
    learning = [info.name for info in parameter_infos(model) if info.parameter.requires_grad and info.part == "text"]
    assert learning
    assert all("layer.1." in name for name in learning)
