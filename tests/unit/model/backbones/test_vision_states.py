"""Vision-language models that go on from what their frozen vision tower gave: the same numbers, and no picture read."""

import logging

import pytest
import torch
from torch import nn

from tests import tiny
from tests.cases import CASES, quick_and_slow
from tests.gradients import assert_gradients_equal
from tests.unit.model.embedding import embed, finished
from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import concat_rows, num_rows, select_rows, take_rows
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.freezing import with_fixed_features
from vembed.model.settings import ModelSettings
from vembed.training.dpo import frozen_copy
from vembed.types import ImageSource, Item, Ragged

NATIVE = ["colpali", "colqwen2", "colmodernvbert"]
EVERY = [
    name
    for name, case in CASES.items()
    if case.family in ("vlm_generic", "qwen3_vl") or name in (*NATIVE, "colqwen", "colqwen3")
]
CUT = [name for name in EVERY if name != "plain_llava"]  # whose own code has no part that it calls by that name
VISION = ("vision", "visual", "projector", "connector")
FROZEN = {"freeze": ("vision",)}


def rows_of(texts, pictures):
    """Texts, pictures, rows of both and of several pictures."""
    images = [ImageSource(pil=picture) for picture in pictures]
    return [
        Item(text=texts[0]),
        Item(images=(images[0],)),
        Item(text=texts[4], images=(images[1],)),
        Item(images=(images[2], images[3])),
        Item(text=texts[1]),
    ]


def assert_states_change_nothing(model, items):
    model.model.train()
    inputs = finished(model, items)
    cut = with_fixed_features(model.model, inputs)
    assert "picture_states" in cut.tensors
    assert not any(ragged.values.requires_grad for ragged in cut.tensors.values())
    (vectors, gradients), (expected, expected_gradients) = embed(model, cut), embed(model, inputs)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert_gradients_equal(gradients, expected_gradients)
    return cut


@pytest.mark.parametrize("name", quick_and_slow(CUT))
def test_embeddings_and_gradients_are_the_same(name, fresh, texts, pictures):
    assert_states_change_nothing(fresh(name, **FROZEN), rows_of(texts, pictures))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.tiny_llava, tiny.tiny_llava_next, tiny.tiny_internvl, tiny.tiny_qwen3_vl_moe])
def test_they_are_for_their_kin(make, texts, pictures, tmp_path):
    model = VisualRetrievalModel.from_pretrained(make(tmp_path), ModelSettings(**FROZEN))
    assert_states_change_nothing(model, rows_of(texts, pictures))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", ["qwen3_vl_embedding", "colqwen2"])
def test_adapters_on_the_language_model_freeze_the_vision_tower(name, checkpointing, fresh, texts, pictures):
    model = fresh(name, use_lora=True, lora_dropout=0.3, gradient_checkpointing=checkpointing)
    assert model.model.freezing.towers == {"vision"}
    with torch.no_grad():
        for key, parameter in model.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    assert_states_change_nothing(model, rows_of(texts, pictures))


def test_adapters_on_both_towers_freeze_neither(fresh):
    assert fresh("qwen2_vl", use_lora=True, lora_target_modules=("q_proj", "attn.qkv")).model.freezing.towers == set()
    assert fresh("clip", use_lora=True).model.freezing.towers == set()


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm", *NATIVE])
def test_nothing_that_reads_pictures_runs(name, fresh, texts, pictures):
    model = fresh(name, **FROZEN)
    items = rows_of(texts, pictures)
    inputs = finished(model, items)
    cut = with_fixed_features(model.model, inputs)

    def ran(one):
        seen = set()
        handles = [
            module.register_forward_hook(lambda *_, name=key: seen.add(name))
            for key, module in model.model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        ]
        model.model(one)
        for handle in handles:
            handle.remove()
        return {key for key in seen if any(word in key for word in VISION)}

    assert ran(inputs)
    assert not ran(cut)


def test_pixels_are_not_kept_and_rows_own_the_tokens_of_their_pictures(fresh, texts, pictures):
    model = fresh("smolvlm", **FROZEN)
    inputs = finished(model, rows_of(texts, pictures))
    cut = with_fixed_features(model.model, inputs)
    assert {"pixel_values", "pixel_attention_mask"} <= inputs.tensors.keys() - cut.tensors.keys()
    assert all(ragged.values.numel() == 0 for name, ragged in cut.tensors.items() if ".pixel_" in name)
    counts = inputs.tensors["image_tokens"].values.sum(dim=1)
    assert cut.tensors["picture_states"].counts.tolist() == counts.tolist()
    assert cut.tensors["picture_states"].values.shape == (int(counts.sum()), 24)


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision", "colqwen2"])
def test_rows_are_cut_chosen_and_joined(name, fresh, texts, pictures):
    model = fresh(name, **FROZEN)
    inputs = finished(model, rows_of(texts, pictures))
    cut = with_fixed_features(model.model, inputs)
    assert num_rows(cut) == 5
    assert with_fixed_features(model.model, cut).tensors == cut.tensors
    for order in ([3, 0, 2], [4, 0], [1]):
        chosen = (select_rows(one, torch.tensor(order)) for one in (cut, inputs))
        vectors, expected = (model.model(one).vectors for one in chosen)
        assert torch.allclose(vectors, expected, atol=1e-6)
    parts = [take_rows(cut, 0, 2), take_rows(cut, 2, 5)]
    assert torch.allclose(model.model(concat_rows(parts)).vectors, model.model(inputs).vectors, atol=1e-6)


def test_other_states_give_other_embeddings(fresh, texts, pictures):
    for name, parts in (("qwen2_vl", 1), ("colqwen3", 3)):
        model = fresh(name, **FROZEN)
        cut = with_fixed_features(model.model, finished(model, rows_of(texts, pictures)))
        states = cut.tensors["picture_states"]
        assert states.values.shape[1] == parts * 24
        for part in range(parts):
            wrong = states.values.clone()
            wrong[:, part * 24 : (part + 1) * 24] += 0.5
            other = type(cut)(cut.num_rows, {**cut.tensors, "picture_states": Ragged(wrong, states.counts)})
            difference = (model.model(other).vectors - model.model(cut).vectors).abs().flatten(1).amax(dim=1)
            assert (difference[1:4] > 1e-3).all()
            assert (difference[[0, 4]] < 1e-6).all()


def test_a_tower_that_learns_and_inputs_without_pictures_are_left_alone(fresh, texts, pictures):
    for name in ("qwen2_vl", "colqwen2"):
        for settings in ({}, {"freeze": ("text",)}, {"freeze_layers": {"vision": 1, "text": 1}}):
            model = fresh(name, **settings)
            inputs = finished(model, rows_of(texts, pictures))
            assert with_fixed_features(model.model, inputs).tensors == inputs.tensors
        frozen = fresh(name, **FROZEN)
        inputs = finished(frozen, rows_of(texts, pictures))
        for items in ([], [Item(text=texts[0])]):
            inputs = finished(frozen, items)
            assert with_fixed_features(frozen.model, inputs).tensors == inputs.tensors


def test_a_model_that_cannot_be_cut_runs_its_vision_tower_and_says_so_once(fresh, texts, pictures, caplog):
    model = fresh("plain_llava", **FROZEN)
    model.model.train()
    inputs = finished(model, rows_of(texts, pictures))
    with caplog.at_level(logging.INFO, "vembed.model.backbones.vision_states"):
        for _ in range(2):
            assert with_fixed_features(model.model, inputs).tensors == inputs.tensors
    assert len([line for line in caplog.messages if "cannot be cut above its frozen vision tower" in line]) == 1
    assert embed(model, inputs)[1]


def test_a_vision_tower_that_draws_random_numbers_is_not_cut(fresh, texts, pictures):
    model = fresh("smolvlm", **FROZEN)
    inputs = finished(model, rows_of(texts, pictures))
    model.model.train()
    model.model.backbone.connector.register_forward_hook(lambda _module, _inputs, output: output * torch.rand(1))
    assert with_fixed_features(model.model, inputs).tensors == inputs.tensors


def test_nothing_is_left_behind_after_an_error(fresh, texts, pictures):
    model = fresh("qwen2_vl", **FROZEN)
    inputs = finished(model, rows_of(texts, pictures))
    whole = model.model(inputs).vectors
    cut = with_fixed_features(model.model, inputs)

    def fail(*_):
        raise RuntimeError("in the midst of a run")

    handle = model.model.backbone.language_model.register_forward_pre_hook(fail)
    for one in (inputs, cut):
        with pytest.raises(RuntimeError, match="in the midst"):
            model.model(one)
    handle.remove()
    assert "get_image_features" not in model.model.backbone.__dict__
    assert torch.equal(model.model(inputs).vectors, whole)


def test_trying_moves_no_random_state(fresh, texts, pictures):
    model = fresh("qwen2_vl", **FROZEN)
    model.model.train()
    inputs = finished(model, rows_of(texts, pictures))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert "picture_states" in with_fixed_features(model.model, inputs).tensors
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_asks_for_pictures_twice_is_told_of(fresh, texts, pictures):
    model = fresh("qwen2_vl", **FROZEN)
    cut = with_fixed_features(model.model, finished(model, rows_of(texts, pictures)))
    backbone = model.model.backbone

    def ask_again(*_):
        backbone.get_image_features()

    backbone.language_model.register_forward_hook(ask_again)
    with pytest.raises(ModelError, match="Qwen2VLModel asked for the pictures' tokens 2 times, not once"):
        model.model(cut)


@pytest.mark.parametrize("name", ["qwen3_vl", "colqwen2"])
def test_a_copy_goes_on_from_the_states_of_the_model_and_the_model_from_those_of_a_copy(name, fresh, texts, pictures):
    model = fresh(name, **FROZEN)
    inputs = finished(model, rows_of(texts, pictures))
    whole = model.model(inputs).vectors
    copied = frozen_copy(model.model)
    states = with_fixed_features(copied, inputs)
    assert "picture_states" in states.tensors
    assert torch.allclose(model.model(states).vectors, whole, atol=1e-6)
    assert torch.allclose(copied(with_fixed_features(model.model, inputs)).vectors, whole, atol=1e-6)
    assert not {id(module) for module in copied.modules()} & {id(module) for module in model.model.modules()}
