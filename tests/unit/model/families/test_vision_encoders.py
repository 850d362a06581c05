"""Vision encoders beyond ViT, DINOv2 and timm give what plain transformers gives, pooled in every way they can be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from tests.tiny import saving, tiny_timm, tiny_vit, write_sentence_transformers_files
from tests.tiny.vision import NUM_REGISTERS, tiny_mae
from vembed.errors import ModelError
from vembed.model.families.vision import VISION
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item

EXACT = ["mae", "siglip_vision", "naflex_vision", "clip_vision", "convnext", "swin"]
ROUNDED = ["dinov3_vit", "dinov3_convnext"]


def plain(folder: str):
    """The model by the class that its config.json names, an MAE seeing the whole image."""
    named = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
    if named == "ViTMAEForPreTraining":
        return transformers.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    return getattr(transformers, named).from_pretrained(folder).eval()


def images_of(pictures) -> list[Item]:
    return [Item(images=(ImageSource(pil=picture),)) for picture in pictures]


def pixels_of(model: VisualRetrievalModel, pictures) -> dict[str, torch.Tensor]:
    inputs = model.processor.finish(model.processor.prepare(images_of(pictures), "document"))
    return {name: ragged.values for name, ragged in inputs.tensors.items()}


def own_output(name: str, output) -> torch.Tensor:
    if name == "mae":
        return output.last_hidden_state[:, 0]
    return output.image_embeds if name == "clip_vision" else output.pooler_output


def refusal(folder: object, **settings: object) -> str:
    with pytest.raises(ModelError) as caught:
        VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings))
    return str(caught.value)


def assert_same_vectors(ours: torch.Tensor, plain_features: torch.Tensor) -> None:
    expected = functional.normalize(plain_features, dim=-1)
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=2e-6)
    assert (ours[0] - expected[1]).abs().max() > 1e-3, "all features are alike: the comparison proves nothing"


@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_features_are_those_of_transformers_with_the_checkpoint_s_own_processor(name, model_of, folder_of, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    output = plain(folder_of(name))(**processor(pictures, return_tensors="pt"))
    assert_same_vectors(model_of(name).get_image_features(pictures), own_output(name, output))


@pytest.mark.parametrize("name", EXACT)
def test_resizing_in_uint8_and_normalising_later_gives_the_processor_s_own_tensors(name, model_of, folder_of, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    inputs = model_of(name).processor.prepare(images_of(pictures), "document")
    assert inputs.tensors["pixel_values"].values.dtype == torch.uint8
    expected = processor(pictures, return_tensors="pt")
    finished = pixels_of(model_of(name), pictures)
    assert finished.keys() == expected.keys()
    assert all(torch.equal(finished[key], torch.as_tensor(expected[key])) for key in finished)


@pytest.mark.parametrize("name", ROUNDED)
@torch.no_grad()
def test_where_the_processor_resizes_in_float_pixels_are_rounded_and_vectors_stay(name, model_of, folder_of, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    expected = processor(pictures, return_tensors="pt")
    finished = pixels_of(model_of(name), pictures)["pixel_values"]
    assert (finished - expected["pixel_values"]).abs().max() <= 0.02
    ours, theirs = model_of(name).get_image_features(pictures), plain(folder_of(name))(**expected).pooler_output
    assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.9999
    same_pixels = plain(folder_of(name))(pixel_values=finished).pooler_output
    assert_same_vectors(ours, same_pixels)


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("dinov3_vit", 48), ("mae", 48), ("siglip_vision", 48), ("clip_vision", 48), ("convnext", 64)],
)
@torch.no_grad()
def test_another_image_size(name, image_size, fresh, folder_of, pictures):
    model = fresh(name, image_size=image_size)
    pixels = pixels_of(model, pictures)["pixel_values"]
    assert pixels.shape[1:] == (3, image_size, image_size)
    stretch = {"interpolate_pos_encoding": True} if name in ("mae", "siglip_vision", "clip_vision") else {}
    assert_same_vectors(model.get_image_features(pictures), own_output(name, plain(folder_of(name))(pixels, **stretch)))


STAGES = {"num_stages": 2, "hidden_sizes": [8, 24], "depths": [1, 1], "image_size": 32}
VIT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# Architectures that differ little from those above: configuration, and how many tokens come before the patches.
NEAR = {
    "convnextv2": (transformers.ConvNextV2Config(**STAGES), 0),
    "deit": (transformers.DeiTConfig(**VIT), 2),
    "dinov2_with_registers": (transformers.Dinov2WithRegistersConfig(**VIT, num_register_tokens=3), 4),
    "hiera": (
        transformers.HieraConfig(
            embed_dim=8, image_size=[32, 32], depths=[1, 1], num_heads=[1, 2], num_query_pool=1, masked_unit_size=[4, 4]
        ),
        0,
    ),
    "ijepa": (transformers.IJepaConfig(**VIT), 0),
    "swinv2": (
        transformers.Swinv2Config(
            image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        0,
    ),
}


@pytest.mark.parametrize("name", NEAR)
@torch.no_grad()
def test_near_relatives_are_read_as_transformers_reads_them(name, pictures, tmp_path):
    config, first = NEAR[name]
    saving.save(transformers.MODEL_MAPPING[type(config)], config, tmp_path, seed=0)
    size = {"shortest_edge": 32} if name == "convnextv2" else {"height": 32, "width": 32}
    kind = transformers.ConvNextImageProcessor if name == "convnextv2" else transformers.ViTImageProcessor
    kind(size=size).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    output = plain(str(tmp_path))(**processor(pictures, return_tensors="pt"))
    hidden = output.last_hidden_state
    patches = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, first:]
    own = VISION.architectures[name].pooling
    expected = {"cls": hidden[:, 0], "mean": patches.mean(dim=1)}.get(own, output.pooler_output)
    model = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert_same_vectors(model.get_image_features(pictures), expected)
    mean = VisualRetrievalModel.from_pretrained(str(tmp_path), ModelSettings(pooling="mean"))
    assert_same_vectors(mean.get_image_features(pictures), patches.mean(dim=1))


def test_every_architecture_that_is_said_to_be_tested_is():
    said = {name for name, architecture in VISION.architectures.items() if architecture.tested}
    compared = {*NEAR, *EXACT, *ROUNDED}
    own_tests = {"dinov2", "timm_wrapper", "vit"}  # in test_equals_transformers
    model_types = {"mae": "vit_mae", "naflex_vision": "siglip2_vision_model"}
    model_types |= {name: f"{name}_model" for name in ("clip_vision", "siglip_vision")}
    assert said == {model_types.get(name, name) for name in compared} | own_tests


# The patches of each: after CLS and registers, or all.
FIRST_PATCH = {"vit": 1, "dinov2": 1, "dinov3_vit": 1 + NUM_REGISTERS, "mae": 1, "clip_vision": 1, "siglip_vision": 0}


@pytest.mark.parametrize("pooling", ["mean", "max", "cls+mean", "gem"])
@pytest.mark.parametrize("name", FIRST_PATCH)
@torch.no_grad()
def test_patches_are_pooled_without_cls_and_registers(name, pooling, fresh, folder_of, pictures):
    if pooling == "cls+mean" and name == "siglip_vision":
        assert "this siglip_vision_model model has no CLS token" in refusal(folder_of(name), pooling=pooling)
        return
    model = fresh(name, pooling=pooling)
    hidden = plain(folder_of(name))(pixels_of(model, pictures)["pixel_values"]).last_hidden_state
    expected = []
    for tokens in hidden:  # one image, one token at a time
        patches = tokens[FIRST_PATCH[name] :]
        pooled = {"mean": patches.mean(dim=0), "max": patches.max(dim=0).values}
        pooled["cls+mean"] = torch.cat([tokens[0], pooled["mean"]])
        pooled["gem"] = sum(patch.clamp(min=1e-6) ** 3 for patch in patches).div(len(patches)) ** (1 / 3)
        expected.append(pooled[pooling])
    assert model.model.dim == expected[0].shape[0]
    assert_same_vectors(model.get_image_features(pictures), torch.stack(expected))


@pytest.mark.parametrize("pooling", ["mean", "max", "gem"])
@pytest.mark.parametrize("name", ["convnext", "timm"])
@torch.no_grad()
def test_feature_maps_are_pooled_over_their_places(name, pooling, fresh, folder_of, pictures):
    size = {"image_size": 128} if name == "timm" else {}  # which has one place per 32 x 32 pixels
    model = fresh(name, pooling=pooling, **size)
    maps = transformers.AutoModel.from_pretrained(folder_of(name)).eval()(pixels_of(model, pictures)["pixel_values"])
    places = maps.last_hidden_state.flatten(2)  # [images, width, places]
    assert places.shape[-1] == 16
    expected = {
        "mean": places.mean(dim=-1),
        "max": places.amax(dim=-1),
        "gem": places.clamp(min=1e-6).pow(3).mean(dim=-1).pow(1 / 3),
    }[pooling]
    assert_same_vectors(model.get_image_features(pictures), expected)


def test_a_composed_model_bounds_the_patches_of_its_naflex_tower(folder_of, pictures, tmp_path):
    def load(name=None, image="naflex_vision", **settings):
        towers = {} if name else {"text_model_name": folder_of("bert"), "image_model_name": folder_of(image)}
        return VisualRetrievalModel.from_pretrained(name, ModelSettings.model_validate(towers | settings))

    model = load(max_num_patches=5)
    assert pixels_of(model, pictures[:1])["pixel_values"].shape[1] == 5
    model.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    assert torch.allclose(again.get_image_features(pictures), model.get_image_features(pictures), atol=1e-6)
    with pytest.raises(ModelError, match="image_size: a NaFlex model keeps the shape of a picture; set max_num_patch"):
        load(image_size=64)
    with pytest.raises(ModelError, match="max_num_patches: this model reads pictures of one size"):
        load(image="vit", max_num_patches=5)


def test_naflex_patches_that_are_padding_are_not_pooled(fresh, pictures):
    model = fresh("naflex_vision", pooling="mean", max_num_patches=11)
    padded = pixels_of(model, pictures[:1])
    real = padded["pixel_attention_mask"].bool()[0]
    assert 1 < real.sum() < 11
    kept = {name: padded[name][:, real] for name in ("pixel_values", "pixel_attention_mask")}
    with torch.no_grad():
        ours = model.model.embed_images(padded)
        assert torch.allclose(ours, model.model.embed_images({**padded, **kept}), atol=1e-6)


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "vit_tiny_patch16_224"])
def test_any_timm_model_is_pooled_by_its_patches(architecture, pictures, tmp_path):
    folder = tiny_timm(tmp_path, architecture=architecture, image_size=64)
    model = VisualRetrievalModel.from_pretrained(folder, ModelSettings(pooling="mean"))
    pixels = pixels_of(model, pictures)["pixel_values"]
    with torch.no_grad():
        network = transformers.AutoModel.from_pretrained(folder).eval()
        hidden = network(pixels).last_hidden_state
    expected = hidden[:, 1:].mean(dim=1) if "vit" in architecture else hidden.mean(dim=(-2, -1))
    assert_same_vectors(model.get_image_features(pictures), expected)
    if "vit" not in architecture:
        assert "this timm_wrapper model has no CLS token; use mean, max, gem or own" in refusal(folder, pooling="cls")


@pytest.mark.slow
def test_timm_models_with_channels_last_maps_are_pooled_over_places(pictures, tmp_path):
    folder = tiny_timm(tmp_path, architecture="swin_tiny_patch4_window7_224", image_size=224)
    model = VisualRetrievalModel.from_pretrained(folder, ModelSettings(pooling="mean"))
    assert model.model.dim == 768
    own = VisualRetrievalModel.from_pretrained(folder).get_image_features(pictures[:2])
    assert torch.allclose(model.get_image_features(pictures[:2]), own, atol=1e-5)  # swin averages its places itself


def test_an_mae_sees_the_whole_image_in_the_same_order_every_time_also_in_training(fresh, folder_of, pictures):
    model = fresh("mae", pooling="mean")
    pixels = pixels_of(model, pictures)
    model.model.train()
    with torch.no_grad():
        first, second = model.model.embed_images(pixels), model.model.embed_images(pixels)
        masked = transformers.ViTMAEModel.from_pretrained(folder_of("mae"))(pixels["pixel_values"]).last_hidden_state
    assert torch.equal(first, second)
    assert masked.shape[1] < 1 + 16, "the base masks nothing: the comparison proves nothing"


def test_an_mae_is_saved_whole_and_unmasked(fresh, folder_of, pictures, tmp_path):
    model = fresh("mae")
    decoder = [parameter for name, parameter in model.model.named_parameters() if "decoder" in name]
    assert decoder
    assert not any(parameter.requires_grad for parameter in decoder)
    model.save_pretrained(tmp_path)
    saved, base = load_file(tmp_path / "model.safetensors"), load_file(Path(folder_of("mae")) / "model.safetensors")
    assert saved.keys() == base.keys()
    assert all(torch.equal(saved[name], base[name]) for name in base)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["mask_ratio"]) == (["ViTMAEForPreTraining"], 0.0)
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    ours = model.get_image_features(pictures)
    assert torch.allclose(torch.as_tensor(opened.encode(pictures)), ours, atol=1e-5)


def test_an_mae_without_its_decoder_opens_too(folder_of, model_of, pictures, tmp_path):
    encoder = transformers.ViTMAEModel.from_pretrained(folder_of("mae"))
    encoder.save_pretrained(tmp_path)
    shutil.copy(Path(folder_of("mae")) / "preprocessor_config.json", tmp_path)
    model = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert torch.equal(model.get_image_features(pictures), model_of("mae").get_image_features(pictures))


def test_an_mae_s_adapters_alone_open_unmasked_in_sentence_transformers(folder_of, pictures, tmp_path):
    base = str(tmp_path / "base")
    transformers.ViTMAEModel.from_pretrained(folder_of("mae")).save_pretrained(base)
    shutil.copy(Path(folder_of("mae")) / "preprocessor_config.json", base)
    model = VisualRetrievalModel.from_pretrained(base, ModelSettings(use_lora=True))
    for name, parameter in model.model.named_parameters():
        parameter.data.add_(0.1 * torch.ones_like(parameter) if "lora_B" in name else 0)
    model.save_pretrained(tmp_path / "adapters", merge_adapters=False)
    opened = SentenceTransformer(str(tmp_path / "adapters"), device="cpu")
    ours = model.get_image_features(pictures)
    assert torch.allclose(torch.as_tensor(opened.encode(pictures)), ours, atol=1e-5)
    base_vectors = VisualRetrievalModel.from_pretrained(base).get_image_features(pictures)
    assert not torch.allclose(base_vectors, ours, atol=1e-3)


def test_gem_learns_its_exponent_and_keeps_it(fresh, pictures, tmp_path):
    model = fresh("gem")
    infos = {info.name: info for info in parameter_infos(model.model)}
    exponent = infos["vision_tower.exponent"]
    assert (exponent.part, exponent.pretrained, exponent.parameter.tolist()) == ("heads", False, [3.0])
    model.model.embed_images(pixels_of(model, pictures)).sum().backward()
    assert exponent.parameter.grad.abs() > 0
    without = [name for name, info in infos.items() if info.parameter.requires_grad and info.parameter.grad is None]
    assert without == ["logit_scale"]
    exponent.parameter.data.fill_(5.5)
    model.save_pretrained(tmp_path)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert again.model.vision_tower.exponent.tolist() == [5.5]
    assert torch.equal(again.get_image_features(pictures), model.get_image_features(pictures))
    frozen = VisualRetrievalModel.from_pretrained(str(tmp_path), ModelSettings(freeze=("vision",)))
    learning = [info.name for info in parameter_infos(frozen.model) if info.parameter.requires_grad]
    assert learning == ["logit_scale", "vision_tower.exponent"]


@pytest.mark.parametrize("name", ["vit", "mae", "siglip_vision"])
def test_freezing_the_only_tower_leaves_nothing_to_learn(name, folder_of):
    assert "freeze: nothing is left to learn" in refusal(folder_of(name), freeze=("vision",))


@pytest.mark.parametrize("name", ["naflex_vision", "mae", "convnext"])
def test_a_composed_model_reads_images_as_its_tower_does(name, model_of, folder_of, pictures, tmp_path):
    settings = ModelSettings(text_model_name=folder_of("bert"), image_model_name=folder_of(name))
    model = VisualRetrievalModel.from_pretrained(None, settings)
    items = images_of(pictures)
    assert torch.allclose(
        model.encode(items, features="tower").vectors, model_of(name).encode(items).vectors, atol=1e-6
    )
    model.save_pretrained(tmp_path)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert torch.equal(again.encode(items).vectors, model.encode(items).vectors)
    tower = VisualRetrievalModel.from_pretrained(str(tmp_path / "image"))
    assert torch.equal(tower.encode(items).vectors, model.encode(items, features="tower").vectors)


def test_a_gem_tower_keeps_its_exponent_in_a_composed_model(fresh, folder_of, pictures, tmp_path):
    tower = fresh("gem")
    tower.model.vision_tower.exponent.data.fill_(2.5)
    tower.save_pretrained(tmp_path / "tower")
    settings = ModelSettings(text_model_name=folder_of("bert"), image_model_name=str(tmp_path / "tower"))
    model = VisualRetrievalModel.from_pretrained(None, settings)
    items = images_of(pictures)
    assert torch.allclose(model.encode(items, features="tower").vectors, tower.encode(items).vectors, atol=1e-6)
    model.model.vision_tower.exponent.data.fill_(4.0)
    model.save_pretrained(tmp_path / "joined")
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "joined"))
    assert torch.equal(again.encode(items).vectors, model.encode(items).vectors)
    assert "pools by gem; known are" in refusal(tmp_path / "joined" / "image")


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("vit", "mean"), ("dinov2", "cls+mean"), ("convnext", "mean"), ("timm", "gem"), ("mae", "max")],
)
def test_sentence_transformers_refuses_poolings_of_patches_that_it_cannot_tell_apart(name, pooling, fresh, tmp_path):
    fresh(name, pooling=pooling).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Invalid pooling mode"):
        SentenceTransformer(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["siglip_vision", "swin"])
def test_sentence_transformers_pools_patches_where_all_tokens_are_patches(name, fresh, pictures, tmp_path):
    model = fresh(name, pooling="mean")
    model.save_pretrained(tmp_path)
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.allclose(torch.as_tensor(opened.encode(pictures)), model.get_image_features(pictures), atol=1e-5)
    (tmp_path / "vembed_config.json").unlink()
    again = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert torch.equal(again.get_image_features(pictures), model.get_image_features(pictures))


def test_a_folder_of_sentence_transformers_that_averages_all_tokens_is_refused(tmp_path):
    write_sentence_transformers_files(tiny_vit(tmp_path), "mean", 20)
    assert "1_Pooling pools all tokens by mean, those that are no patch's among them" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "convnext",
            {"pooling": "cls"},
            "pooling 'cls': this convnext model has no CLS token; use mean, max, gem or own",
        ),
        ("mae", {"pooling": "own"}, "pooling 'own': a vit_mae model pools nothing by itself; use cls, cls+mean"),
        ("vit", {"pooling": "last"}, "pooling 'last': images are pooled by cls, cls+mean, mean, max, gem or own"),
        ("vit", {"pooling": "own"}, "lacks 2 weights of ViTModel, such as 'pooler.dense.bias'"),
        ("vit", {"max_num_patches": 9}, "max_num_patches: this model reads pictures of one size"),
        ("naflex_vision", {"image_size": 64}, "image_size: a NaFlex model keeps the shape of a picture"),
        ("bert", {"pooling": "gem"}, "pooling 'gem': this is for images; a text model pools the tokens of a text"),
        ("bert", {"pooling": "own"}, "pooling 'own': this is for images"),
        ("clip", {"pooling": "gem"}, "pooling 'gem': a clip model of this kind pools by its own code"),
        ("mae", {"image_size": 44}, "image_size 44 is no multiple of the model's patch size 8"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused(name, settings, message, folder_of):
    assert message in refusal(folder_of(name), **settings)


@pytest.mark.parametrize("name", ["siglip_vision", "convnext", "clip_vision"])
def test_parameters_that_a_pooling_leaves_unused_do_not_learn(name, fresh, pictures):
    model = fresh(name, pooling="mean")
    model.model.embed_images(pixels_of(model, pictures)).sum().backward()
    infos = parameter_infos(model.model)
    assert any(not info.parameter.requires_grad for info in infos)
    assert all(
        info.parameter.grad is not None for info in infos if info.parameter.requires_grad and info.part == "vision"
    )


def test_a_missing_image_processor_is_named(tmp_path):
    folder = Path(tiny_mae(tmp_path))
    (folder / "preprocessor_config.json").unlink()
    assert "has no usable image processor" in refusal(folder)
