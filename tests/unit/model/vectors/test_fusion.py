"""Text and image of one row to one vector: it starts as their sum, learns, is saved, and concerns no other row."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from tests.gradients import assert_gradients_equal
from tests.unit.model.test_contract import batch_of, embed, gradients, shake
from vembed.errors import CheckpointError, ConfigError, ModelError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.model.vectors.fusion import AttentionFusion, Fusion, GatedFusion, MlpFusion
from vembed.model.vectors.fusion_registry import FusionRegistry, fusion_names
from vembed.training.optimizer import build_optimizer
from vembed.training.settings import OptimizerSettings
from vembed.types import ImageSource, Item

LEARNED = ["gated", "mlp", "attention"]
MODELS = ["clip", "siglip", "composed", "vit_pair"]


def units(rows: int, dim: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def made(kind: type[Fusion], dim: int) -> Fusion:
    fusion = kind(dim)
    fusion.initialize(torch.Generator().manual_seed(0))
    return fusion


def load(folder, **settings) -> VisualRetrievalModel:
    return VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings), seed=3)


def shake_fusion(model: VisualRetrievalModel) -> VisualRetrievalModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.fusion.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", [GatedFusion, MlpFusion, AttentionFusion])
@pytest.mark.parametrize("dim", [24, 25])
def test_a_new_fusion_is_the_sum(kind, dim):
    text, image = units(5, dim, 1), units(5, dim, 2)
    torch.testing.assert_close(made(kind, dim)(text, image), text + image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [GatedFusion, MlpFusion, AttentionFusion])
def test_every_weight_of_a_fusion_can_learn(kind):
    fusion = made(kind, 24)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.1)
    fusion(units(5, 24, 1), units(5, 24, 2)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fusion.parameters())


def test_a_gate_weighs_the_two_sides_number_by_number():
    fusion = made(GatedFusion, 2)
    with torch.no_grad():
        fusion.gate.bias.copy_(torch.tensor([100.0, -100.0]))  # all text, then all image
    fused = fusion(torch.tensor([[0.6, 0.8]]), torch.tensor([[0.8, 0.6]]))
    torch.testing.assert_close(fused, torch.tensor([[1.2, 1.2]]))


def test_attention_is_that_of_a_plain_loop_over_rows_and_heads():
    fusion = made(AttentionFusion, 16)
    tokens = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(fusion.attended.weight, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(3, 2, 16)
    for row in range(3):
        queries, keys, values = fusion.queries_keys_values(tokens[row]).split(16, dim=-1)
        for head in range(8):
            part = slice(2 * head, 2 * head + 2)
            weights = torch.softmax(queries[:, part] @ keys[:, part].T / 2**0.5, dim=-1)
            expected[row, :, part] = weights @ values[:, part]
    torch.testing.assert_close(fusion._attend(tokens), fusion.attended(expected))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fusion", LEARNED)
def test_a_model_begins_as_it_was_and_learns_about_rows_of_both_alone(name, fusion, fresh, model_of, items_for):
    plain, model = model_of(name), fresh(name, fusion=fusion)
    items = items_for(plain)
    both = torch.tensor([item.text is not None and bool(item.images) for item in items])
    before = embed(plain, items).vectors
    torch.testing.assert_close(embed(model, items).vectors, before, atol=1e-5, rtol=0)
    after = embed(shake_fusion(model), items).vectors
    assert torch.equal(after[~both], before[~both])
    assert both.sum() >= 7
    assert ((after - before)[both].norm(dim=1) > 1e-2).all()
    torch.testing.assert_close(after.norm(dim=1), torch.ones(len(items)))


@pytest.mark.parametrize("name", MODELS)
def test_towers_own_features_are_without_the_fusion(name, fresh, model_of, items_for):
    model = shake_fusion(fresh(name, fusion="gated"))
    kinds = [Item(text="a red circle"), items_for(model)[-1]] if name in ("clip", "siglip") else [Item(text="red")]
    ours = model.encode(kinds, features="tower").vectors
    assert torch.equal(ours, model_of(name).encode(kinds, features="tower").vectors)


@pytest.mark.parametrize("fusion", LEARNED)
@pytest.mark.parametrize("name", ["clip", "composed"])
def test_cached_gradient_equals_plain_gradient_once_a_fusion_has_learned(name, fusion, fresh, texts, pictures):
    model = shake_fusion(fresh(name, fusion=fusion))
    model.model.double()
    batch = batch_of(model, "mixed", texts, pictures)
    plain = gradients(model, batch, None)
    assert all(f"fusion.{part}" in plain for part, _ in model.model.fusion.named_parameters())
    for chunk_size in (1, 2, 4):
        assert_gradients_equal(gradients(model, batch, chunk_size), plain)


def test_a_new_fusion_learns_as_a_head(fresh, tmp_path):
    model = fresh("clip", fusion="mlp")
    infos = [info for info in parameter_infos(model.model) if info.name.startswith("fusion.")]
    assert len(infos) == 4
    assert {(info.part, info.pretrained, info.layer) for info in infos} == {("heads", False, None)}
    rates = OptimizerSettings(learning_rate=1e-5, head_learning_rate=1e-3)
    heads = [group for group in build_optimizer(model.model, rates)[1] if group.part == "heads"]
    assert {(group.learning_rate, group.pretrained) for group in heads} == {(1e-3, False)}
    model.save_pretrained(tmp_path)
    again = [info for info in parameter_infos(load(tmp_path).model) if info.name.startswith("fusion.")]
    assert all(info.pretrained for info in again)


@pytest.mark.parametrize(
    "settings", [{"use_lora": True}, {"freeze": ("text", "vision")}, {"freeze": ("vision",)}], ids=str
)
def test_a_fusion_learns_under_adapters_and_beside_frozen_towers(settings, fresh, texts, pictures):
    model = fresh("clip", fusion="gated", **settings)
    learning = {info.part for info in parameter_infos(model.model) if info.parameter.requires_grad}
    assert learning == {"heads", "scale"} | ({"text", "vision"} - set(settings.get("freeze", ())))
    found = gradients(model, batch_of(model, "mixed", texts, pictures), 2)
    assert found["fusion.gate.weight"].abs().sum() > 0


@pytest.mark.parametrize("fusion", LEARNED)
@pytest.mark.parametrize("name", ["clip", "vit_pair"])
def test_a_fusion_is_saved_with_the_heads(name, fusion, fresh, items_for, tmp_path):
    model = shake(fresh(name, fusion=fusion))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "vembed_heads.safetensors")
    assert [key for key in state if key.startswith("fusion.")]
    again = load(tmp_path)
    assert again.spec.fusion == fusion
    items = items_for(model)
    assert torch.equal(again.encode(items).vectors, model.encode(items).vectors)
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("fusion.")}
    save_file(rest, tmp_path / "vembed_heads.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit this model: fusion\."):
        load(tmp_path)


def test_a_further_stage_adds_a_fusion_to_any_checkpoint(fresh, items_for, tmp_path):
    first = shake(fresh("composed"))
    first.save_pretrained(tmp_path / "first")
    stage = load(tmp_path / "first", fusion="attention")
    assert not stage.model.has_new_heads
    new = {info.name.split(".")[0] for info in parameter_infos(stage.model) if not info.pretrained}
    assert new == {"fusion"}
    items = items_for(first)
    torch.testing.assert_close(stage.encode(items).vectors, first.encode(items).vectors, atol=1e-5, rtol=0)
    shake(stage).save_pretrained(tmp_path / "second")
    for settings in ({}, {"fusion": "attention"}):
        again = load(tmp_path / "second", **settings)
        assert torch.equal(again.encode(items).vectors, stage.encode(items).vectors)
    for other in ("gated", "sum"):
        with pytest.raises(ModelError, match=f"fusion {other}: this checkpoint has learned attention"):
            load(tmp_path / "second", fusion=other)


@pytest.mark.parametrize("merge", [True, False])
def test_a_fusion_stands_beside_saved_adapters(merge, fresh, items_for, tmp_path):
    model = shake_fusion(fresh("clip", fusion="gated", use_lora=True))
    adapters = [parameter for name, parameter in model.model.named_parameters() if ".lora_B" in name]
    assert adapters
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    items = items_for(model)
    model.save_pretrained(tmp_path, merge_adapters=merge)
    again = load(tmp_path)
    torch.testing.assert_close(again.encode(items).vectors, model.encode(items).vectors, atol=1e-5, rtol=0)


def test_a_checkpoint_from_before_there_were_fusions_is_a_sum(fresh, tmp_path):
    model = fresh("clip")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "vembed_config.json").read_text())
    assert saved["spec"].pop("fusion") == "sum"
    (tmp_path / "vembed_config.json").write_text(json.dumps(saved))
    assert load(tmp_path).spec == model.spec


def test_a_new_fusion_is_drawn_from_the_seed_and_nothing_else(fresh):
    state = torch.get_rng_state()
    first = fresh("clip", fusion="mlp", seed=1).model.fusion.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (fresh("clip", fusion="mlp", seed=seed).model.fusion.state_dict() for seed in (1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["up.weight"], other["up.weight"])
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("fusion", ["gated", "sum"])
def test_a_model_of_one_tower_has_nothing_to_fuse(name, fusion, fresh):
    with pytest.raises(ModelError, match=r"fusion: a (text|vision) model has no use for it"):
        fresh(name, fusion=fusion)


def test_an_unknown_fusion_names_the_known_ones(fresh):
    with pytest.raises(ModelError, match=r"no fusion 'gatd'; did you mean gated\? Known: attention, gated, mlp, sum"):
        fresh("clip", fusion="gatd")
    with pytest.raises(ConfigError, match="did you mean 'gated'"):
        FusionRegistry.get("gatd")


def test_a_fusion_of_ones_own_is_chosen_by_its_name(fresh, pictures, monkeypatch):
    class Difference(Fusion):
        def forward(self, text, image):
            return text - image

    monkeypatch.setattr(FusionRegistry, "_components", dict(FusionRegistry._components))
    FusionRegistry.register("difference", Difference)
    assert "difference" in fusion_names()
    picture = ImageSource(pil=pictures[0])
    model = fresh("clip", fusion="difference")
    text, image, both = embed(
        model, [Item(text="a"), Item(images=(picture,)), Item(text="a", images=(picture,))]
    ).vectors
    torch.testing.assert_close(both, functional.normalize(text - image, dim=0))


def test_sentence_transformers_refuses_rows_that_only_a_fusion_can_embed(fresh, pictures, tmp_path):
    """Texts and images by themselves it embeds equally, which the contract's tests say."""
    shake_fusion(fresh("clip", fusion="gated")).save_pretrained(tmp_path)
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="cannot combine them in a single input"):
        opened.encode([{"text": "a red circle", "image": pictures[0]}])
