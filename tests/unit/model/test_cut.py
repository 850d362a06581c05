"""Towers that go on from what their frozen layers gave: the same embeddings and gradients, and nothing below is run."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests import tiny
from tests.gradients import assert_gradients_equal
from tests.unit.model.embedding import embed, finished
from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import concat_rows, num_rows, select_rows, take_rows
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.training.dpo import frozen_copy
from vembed.types import ImageSource, Item, Ragged

BOTH = {"text": 1, "vision": 1}
CASES = {
    "bert": {"text": 1},
    "mpnet": {"text": 1},
    "modernbert": {"text": 2},
    "qwen3_embedding": {"text": 1},
    "sentence": {"text": 1},
    "vit": {"vision": 1},
    "dinov2": {"vision": 1},
    "mae": {"vision": 1},
    "clip": BOTH,
    "siglip": BOTH,
    "naflex": BOTH,
    "own_code": {"text": 1},
    "vit_pair": BOTH,
    "composed": BOTH,
    "swin": {"vision": 1},
    "colbert": {"text": 1},
    "colbert_modern": {"text": 2},
    "colbert_llama": {"text": 1},
}


def rows_of(model, texts, pictures):
    """Texts of many lengths, pictures, rows of both and of several pictures, mixed as far as the model reads them."""
    images = [ImageSource(pil=picture) for picture in pictures]
    items = [
        Item(text=texts[0]),
        Item(images=(images[0],)),
        Item(text=texts[4], images=(images[1],)),
        Item(images=(images[2], images[3])),
        Item(text=texts[1]),
        Item(text=texts[2], images=(images[4], images[5], images[0])),
    ]
    can = model.spec.can
    kept = [replace(item, text=item.text if can(["text"]) else None) for item in items]
    kept = [replace(item, images=item.images if can(["image"]) else ()) for item in kept]
    return [item for item in kept if item.text is not None or item.images]


def assert_states_change_nothing(model, items):
    model.model.train()
    inputs = finished(model, items)
    cut = model.model.with_fixed_features(inputs)
    states = {name for name in cut.tensors if name.endswith("_states")}
    assert states == {f"{'image' if tower == 'vision' else tower}_states" for tower in model.model.bottoms}
    assert not any(ragged.values.requires_grad for ragged in cut.tensors.values())
    vectors, gradients = embed(model, cut)
    expected, expected_gradients = embed(model, inputs)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert_gradients_equal(gradients, expected_gradients)
    return cut


@pytest.mark.parametrize("name", CASES)
def test_embeddings_and_gradients_are_the_same(name, fresh, texts, pictures):
    model = fresh(name, freeze_layers=CASES[name])
    assert_states_change_nothing(model, rows_of(model, texts, pictures))


@pytest.mark.parametrize("settings", [{"freeze_layers": {"text": 1}}, {"freeze": ("text",)}], ids=["layers", "tower"])
@pytest.mark.parametrize("name", ["colbert", "colbert_llama"])
def test_queries_of_late_interaction_keep_the_tokens_that_fill_them_up(name, settings, fresh, texts):
    model = fresh(name, num_query_tokens=14, **settings)
    model.model.train()
    inputs = model.processor.prepare([Item(text=text) for text in (texts[0], texts[4], texts[1])], "query")
    filled = inputs.tensors["scored"].values & ~inputs.tensors["attention_mask"].values.bool()
    assert filled.any()  # no other token reads them
    cut = model.model.with_fixed_features(inputs)
    assert inputs.tensors.keys() - cut.tensors.keys() == {"input_ids"}
    assert {"text_states", "text_features"} & cut.tensors.keys()
    assert model.model.with_fixed_features(cut).tensors == cut.tensors
    (vectors, gradients), (expected, expected_gradients) = embed(model, cut), embed(model, inputs)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert_gradients_equal(gradients, expected_gradients)
    assert model.model.with_fixed_features(inputs, of_layers=False).tensors == inputs.tensors


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", ["bert", "colbert", "clip", "dinov2", "vit_pair"])
def test_they_are_with_adapters_too(name, checkpointing, fresh, texts, pictures):
    settings = {"use_lora": True, "lora_dropout": 0.3, "gradient_checkpointing": checkpointing}
    model = fresh(name, freeze_layers=CASES[name], **settings)
    with torch.no_grad():
        for key, parameter in model.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    assert_states_change_nothing(model, rows_of(model, texts, pictures))


@pytest.mark.parametrize("name", ["bert", "clip", "siglip", "mpnet"])
def test_they_are_under_gradient_checkpointing(name, fresh, texts, pictures):
    checkpointing = name != "mpnet"  # whose class recomputes nothing
    model = fresh(name, freeze_layers=CASES[name], gradient_checkpointing=checkpointing)
    assert_states_change_nothing(model, rows_of(model, texts, pictures))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_they_are_for_a_vision_transformer_of_timm(checkpointing, tmp_path, pictures):
    folder = tiny.tiny_timm(tmp_path, architecture="test_vit")
    settings = ModelSettings(freeze_layers={"vision": 3}, gradient_checkpointing=checkpointing)
    model = VisualRetrievalModel.from_pretrained(folder, settings)
    assert_states_change_nothing(model, rows_of(model, [""] * 5, pictures))


def test_nothing_below_the_boundary_runs(fresh, texts, pictures):
    model = fresh("clip", freeze_layers=BOTH)
    cut = assert_states_change_nothing(model, rows_of(model, texts, pictures))
    ran = set()
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
    model.model(cut)
    of_towers = {name for name in ran if "encoder" in name or "embed" in name or "pre_" in name}
    assert of_towers
    assert all(".layers.1." in name for name in of_towers)


def test_padding_and_pixels_are_not_kept(fresh, texts, pictures):
    model = fresh("vit_pair", freeze_layers=BOTH)
    items = rows_of(model, texts, pictures)
    inputs = finished(model, items)
    mask = inputs.tensors["attention_mask"]
    assert not mask.values.all()
    cut = model.model.with_fixed_features(inputs)
    states = cut.tensors["text_states"]
    assert states.values.shape == (int(mask.values.sum()), 24)
    assert states.counts.tolist() == [
        int(mask.values[row].sum()) if row is not None else 0 for row in (0, None, 1, None, 2, 3)
    ]
    assert cut.tensors["image_states.pixel_values"].values.numel() == 0
    assert cut.tensors["image_states"].values.shape == (7, 17, 20)
    assert num_rows(cut) == len(items)


@pytest.mark.parametrize("name", ["vit_pair", "naflex"])
def test_rows_are_cut_chosen_and_joined(name, fresh, texts, pictures):
    model = fresh(name, freeze_layers=BOTH)
    items = rows_of(model, texts, pictures)
    inputs = finished(model, items)
    whole = model.model(inputs).vectors
    cut = model.model.with_fixed_features(inputs)
    order = torch.tensor([5, 3, 0, 2])
    assert torch.allclose(model.model(select_rows(cut, order)).vectors, whole[order], atol=1e-6)
    parts = [take_rows(cut, 0, 2), take_rows(cut, 2, 6)]
    assert torch.allclose(torch.cat([model.model(part).vectors for part in parts]), whole, atol=1e-6)
    assert torch.allclose(model.model(concat_rows(parts[::-1])).vectors, whole[[2, 3, 4, 5, 0, 1]], atol=1e-6)
    assert model.model.with_fixed_features(cut).tensors == cut.tensors


@pytest.mark.parametrize("name", ["vit_pair", "naflex", "mpnet"])
def test_rows_with_states_and_rows_without_stand_in_one_batch(name, fresh, texts, pictures):
    model = fresh(name, freeze_layers=CASES.get(name, BOTH))
    items = rows_of(model, texts, pictures)
    inputs = finished(model, items)
    whole = model.model(inputs).vectors
    first = len(items) // 2
    known, other = take_rows(model.model.with_fixed_features(inputs), 0, first), take_rows(inputs, first, len(items))
    none = torch.zeros(len(items), dtype=torch.int64)
    tensors = {
        key: replace(ragged, counts=torch.cat([ragged.counts, none[first:]])) for key, ragged in known.tensors.items()
    }
    tensors |= {
        key: replace(ragged, counts=torch.cat([none[:first], ragged.counts])) for key, ragged in other.tensors.items()
    }
    mixed = replace(inputs, tensors=tensors)
    assert torch.allclose(model.model(mixed).vectors, whole, atol=1e-6)
    assert torch.allclose(model.model(model.model.with_fixed_features(mixed)).vectors, whole, atol=1e-6)


def test_other_states_give_other_embeddings(fresh, texts, pictures):
    model = fresh("clip", freeze_layers=BOTH)
    cut = model.model.with_fixed_features(finished(model, rows_of(model, texts, pictures)))
    for name in ("text_states", "image_states"):
        states = cut.tensors[name]
        wrong = replace(cut, tensors={**cut.tensors, name: Ragged(states.values.roll(1, dims=0), states.counts)})
        assert not torch.allclose(model.model(wrong).vectors, model.model(cut).vectors, atol=1e-2)


def test_a_frozen_tower_and_a_frozen_bottom_stand_side_by_side(fresh, texts, pictures):
    model = fresh("vit_pair", freeze=("text",), freeze_layers={"vision": 1})
    model.model.train()
    inputs = finished(model, rows_of(model, texts, pictures))
    cut = model.model.with_fixed_features(inputs)
    assert set(cut.tensors) == {"text_features", "image_states", "image_states.pixel_values"}
    (vectors, gradients), (expected, expected_gradients) = embed(model, cut), embed(model, inputs)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert_gradients_equal(gradients, expected_gradients)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("t5", {}),  # whose dropout behind the embeddings is the one at its end, which goes on
        ("timm", {"gradient_checkpointing": True}),  # which then runs the parts of stages, not the stages
    ],
)
def test_a_tower_that_cannot_be_cut_runs_its_bottom_and_says_so_once(name, settings, fresh, texts, pictures, caplog):
    tower = "text" if name == "t5" else "vision"
    model = fresh(name, freeze_layers={tower: 1}, **settings)
    model.model.train()
    inputs = finished(model, rows_of(model, texts, pictures))
    with caplog.at_level(logging.INFO, "vembed.model.cut"):
        for _ in range(2):
            assert model.model.with_fixed_features(inputs).tensors == inputs.tensors
    assert len([line for line in caplog.messages if f"the {tower} tower" in line]) == 1
    assert embed(model, inputs)[1]


def test_positions_that_the_first_layer_hands_on_are_made_for_the_length_of_the_texts(fresh, texts, pictures):
    model = fresh("t5", freeze_layers={"text": 1})
    (stack,) = (module for module in model.model.modules() if type(module).__name__ == "T5Stack")
    stack.dropout.p = 0.0
    items = rows_of(model, texts, pictures)
    cut = assert_states_change_nothing(model, items)
    short = take_rows(cut, 0, 1)
    expected = model.model.eval()(finished(model, items[:1])).vectors
    assert torch.allclose(model.model(short).vectors, expected, atol=1e-6)


def test_what_layers_hand_on_of_a_single_text_cannot_be_given_for_others(fresh, texts, pictures):
    model = fresh("t5", freeze_layers={"text": 1})
    (stack,) = (module for module in model.model.modules() if type(module).__name__ == "T5Stack")
    stack.dropout.p = 0.0
    model.model.train()

    block = stack.block[0]
    run = block.forward

    def of_a_text(*arguments, **options):
        hidden, bias, *rest = run(*arguments, **options)
        return hidden, bias * hidden.mean(dim=(1, 2))[:, None, None, None], *rest

    block.forward = of_a_text
    inputs = finished(model, rows_of(model, texts, pictures))
    assert model.model.with_fixed_features(inputs).tensors == inputs.tensors


def test_what_changes_below_the_boundary_is_not_taken(fresh, texts, pictures):
    def is_cut(change):
        model = fresh("bert", freeze_layers={"text": 1})
        model.model.train()
        change(model.model.text_tower.model)
        inputs = finished(model, rows_of(model, texts, pictures))
        return "text_states" in model.model.with_fixed_features(inputs).tensors

    assert is_cut(lambda network: None)
    assert not is_cut(lambda network: network.embeddings.LayerNorm.bias.requires_grad_(True))
    assert not is_cut(lambda network: network.embeddings.dropout.train())
    assert not is_cut(lambda network: network.compile())


def test_vision_language_models_have_no_boundary_within_a_tower(fresh, texts, pictures):
    for name in ("qwen2_vl", "colqwen", "colqwen2"):
        model = fresh(name, freeze_layers={"text": 1, "vision": 1})
        inputs = finished(model, rows_of(model, texts, pictures))
        assert model.model.with_fixed_features(inputs).tensors == inputs.tensors


def test_nothing_is_left_behind_after_an_error(fresh, texts, pictures):
    model = fresh("bert", freeze_layers={"text": 1})
    inputs = finished(model, rows_of(model, texts, pictures))
    whole = model.model(inputs).vectors
    cut = model.model.with_fixed_features(inputs)
    learning = model.model.text_tower.model.encoder.layer[1]

    def fail(*_):
        raise RuntimeError("in the midst of a run")

    handle = learning.register_forward_pre_hook(fail)
    for one in (inputs, cut):
        with pytest.raises(RuntimeError, match="in the midst"):
            model.model(one)
    handle.remove()
    assert not any("forward" in module.__dict__ for module in model.model.modules())
    assert not any(module._forward_hooks for module in model.model.text_tower.model.encoder.layer[0].modules())
    assert torch.equal(model.model(inputs).vectors, whole)


def test_trying_moves_no_random_state(fresh, texts, pictures):
    model = fresh("bert", freeze_layers={"text": 1})
    model.model.train()
    inputs = finished(model, rows_of(model, texts, pictures))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model.model.with_fixed_features(inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_frozen_layer_that_runs_twice_is_told_of(fresh, texts, pictures):
    model = fresh("bert", freeze_layers={"text": 1})
    cut = model.model.with_fixed_features(finished(model, rows_of(model, texts, pictures)))
    encoder = model.model.text_tower.model.encoder
    encoder.layer = nn.ModuleList([encoder.layer[0], *encoder.layer])
    with pytest.raises(ModelError, match="layer 1 of the text tower ran 2 times, not once"):
        model.model(cut)


def test_a_copy_goes_on_from_the_states_of_the_model_and_the_model_from_those_of_a_copy(fresh, texts, pictures):
    for name in ("clip", "mpnet"):
        model = fresh(name, freeze_layers={"text": 1})
        inputs = finished(model, rows_of(model, texts, pictures))
        whole = model.model(inputs).vectors
        copied = frozen_copy(model.model)
        model.model.train().eval()
        states = copied.with_fixed_features(inputs)
        assert "text_states" in states.tensors
        assert torch.allclose(model.model(states).vectors, whole, atol=1e-6)
        assert torch.allclose(copied(model.model.with_fixed_features(inputs)).vectors, whole, atol=1e-6)
        assert not {id(module) for module in copied.modules()} & {id(module) for module in model.model.modules()}
