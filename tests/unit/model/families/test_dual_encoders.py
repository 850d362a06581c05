"""Dual encoders beyond CLIP and SigLIP give what plain transformers gives, also with code of their own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.tiny.dual import NAFLEX_PATCHES, tiny_own_code
from vembed.errors import ModelError, UsageError
from vembed.model.detect import detect
from vembed.model.families.dual import CLIP, SIGLIP
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item

KIN = ["metaclip2", "chinese_clip", "altclip", "siglip2", "naflex", "own_code"]
LENGTH = 16


def plain(folder: str):
    return transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()


def features(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def assert_same_vectors(ours: torch.Tensor, plain_features: torch.Tensor) -> None:
    expected = functional.normalize(plain_features, dim=-1)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert (ours[0] - expected[1]).abs().max() > 1e-3, "all features are alike: the comparison proves nothing"


def images_of(pictures) -> list[Item]:
    return [Item(images=(ImageSource(pil=picture),)) for picture in pictures]


def refusal(folder: object, **settings: object) -> str:
    with pytest.raises(ModelError) as caught:
        VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings))
    return str(caught.value)


@pytest.mark.parametrize("name", KIN)
@torch.no_grad()
def test_features_are_those_of_transformers_with_the_checkpoint_s_own_processor(
    name, model_of, folder_of, texts, pictures
):
    model, processor = plain(folder_of(name)), transformers.AutoProcessor.from_pretrained(folder_of(name))
    is_siglip = name in ("siglip2", "naflex")
    words = [text.lower() for text in texts] if is_siglip else texts  # as SigLIP 2 was trained
    padding = {"padding": "max_length" if is_siglip else True, "max_length": LENGTH, "truncation": True}
    inputs = processor.tokenizer(words, return_tensors="pt", **padding)
    inputs.pop("token_type_ids", None)  # all zero
    call = model.encode_text if name == "own_code" else model.get_text_features
    assert_same_vectors(model_of(name).get_text_features(texts), features(call(**inputs)))
    pixels = processor.image_processor(pictures, return_tensors="pt")
    call = model.encode_image if name == "own_code" else model.get_image_features
    assert_same_vectors(model_of(name).get_image_features(pictures), features(call(**pixels)))


@pytest.mark.parametrize("name", KIN)
def test_resizing_in_uint8_and_normalising_later_gives_the_processor_s_own_tensors(name, model_of, folder_of, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    inputs = model_of(name).processor.prepare(images_of(pictures), "document")
    assert inputs.tensors["pixel_values"].values.dtype == torch.uint8
    finished = model_of(name).processor.finish(inputs).tensors
    expected = processor(images=pictures, return_tensors="pt")
    assert finished.keys() == expected.keys()
    for key, ragged in finished.items():
        assert torch.equal(ragged.values, torch.as_tensor(expected[key])), key


def test_pixels_that_are_not_normalised_yet_are_refused(model_of, pictures):
    model = model_of("clip")
    inputs = model.processor.prepare([Item(images=(ImageSource(pil=pictures[0]),))], "document")
    with pytest.raises(
        UsageError, match=r"pixel_values are torch\.uint8, not normalised yet; give the model what `finish`"
    ):
        model.model(inputs)


def test_every_architecture_that_is_said_to_be_tested_is():
    said = {name for family in (CLIP, SIGLIP) for name, one in family.architectures.items() if one.tested}
    model_types = {"metaclip2": "metaclip_2", "naflex": "siglip2", "own_code": "clip", "siglip2": "siglip"}
    assert said == {model_types.get(name, name) for name in KIN}


def test_naflex_pads_patches_with_zeros_and_keeps_the_shape_of_a_picture(model_of, pictures):
    tensors = model_of("naflex").processor.finish(model_of("naflex").processor.prepare(images_of(pictures), "query"))
    pixels, mask = tensors.tensors["pixel_values"].values, tensors.tensors["pixel_attention_mask"].values
    shapes = tensors.tensors["spatial_shapes"].values
    assert pixels.shape == (len(pictures), NAFLEX_PATCHES, 16 * 16 * 3)
    assert torch.equal(shapes.prod(dim=1), mask.sum(dim=1))
    assert len({tuple(shape) for shape in shapes.tolist()}) > 2, "all pictures have one shape: nothing is shown"
    padding = pixels[mask == 0]
    assert len(padding)
    assert not padding.any()


@pytest.mark.parametrize("name", ["siglip2", "naflex"])
def test_siglip_2_reads_lower_case_texts_of_one_length(name, model_of):
    model = model_of(name)
    inputs = model.processor.prepare([Item(text="red"), Item(text="a red circle " * 9)], "query")
    assert inputs.tensors["input_ids"].values.shape == (2, LENGTH)
    assert inputs.tensors["attention_mask"].values.all()
    assert inputs.num_truncated == 1
    assert torch.equal(model.get_text_features(["A RED Circle"]), model.get_text_features(["a red circle"]))


def test_siglip_1_s_tokenizer_is_left_to_its_own_canonical_form(model_of):
    assert not model_of("siglip").spec.lower_case


def test_max_num_patches_is_kept_and_makes_finer_patches(fresh, model_of, pictures, tmp_path):
    model = fresh("naflex", max_num_patches=20)
    inputs = model.processor.prepare(images_of(pictures), "query")
    assert inputs.tensors["pixel_values"].values.shape == (len(pictures), 20, 768)
    vectors = model.get_image_features(pictures)
    assert not torch.allclose(vectors, model_of("naflex").get_image_features(pictures), atol=1e-3)
    model.save_pretrained(tmp_path)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert torch.equal(again.get_image_features(pictures), vectors)
    (tmp_path / "vembed_config.json").unlink()
    assert detect(str(tmp_path), ModelSettings()).spec.max_num_patches == 20


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("naflex", {"image_size": 64}, "image_size: a NaFlex model keeps the shape of a picture; set max_num_patches"),
        ("siglip2", {"max_num_patches": 64}, "max_num_patches: this model reads pictures of one size"),
        (
            "clip",
            {"max_num_patches": 64},
            "max_num_patches: a clip model has no use for it; these have: vision, siglip, composed",
        ),
        ("altclip", {"max_length": 17}, "max_length 17: this model reads at most 16 tokens"),
        ("own_code", {"trust_remote_code": True, "image_size": 48}, "image_size 48: the model cannot read it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, message, folder_of):
    assert message in refusal(folder_of(name), **settings)


@pytest.mark.parametrize("name", ["metaclip2", "chinese_clip", "altclip", "siglip2"])
@torch.no_grad()
def test_another_image_size_interpolates_position_embeddings(name, fresh, folder_of, pictures):
    model = fresh(name, image_size=48)
    pixels = model.processor.finish(model.processor.prepare(images_of(pictures), "query")).tensors["pixel_values"]
    assert pixels.values.shape[1:] == (3, 48, 48)
    expected = plain(folder_of(name)).get_image_features(pixels.values, interpolate_pos_encoding=True)
    assert_same_vectors(model.get_image_features(pictures), expected.pooler_output)


@pytest.mark.parametrize("name", KIN)
def test_the_checkpoint_s_scale_and_bias_are_where_learning_starts(name, fresh, folder_of, tmp_path):
    model = fresh(name)
    base = plain(folder_of(name))
    names = {"logit_scale": base.logit_scale, "logit_bias": getattr(base, "logit_bias", None)}
    for key, expected in names.items():
        own = getattr(model.model, key)
        if expected is None:
            assert own is None
        else:
            assert torch.equal(own, expected.reshape(1))
            assert own.requires_grad
            own.data.add_(1.5)
    model.save_pretrained(tmp_path)
    opened = plain(str(tmp_path))
    for key, expected in names.items():
        if expected is not None:
            assert torch.equal(getattr(opened, key), expected + 1.5)


def test_code_of_its_own_is_refused_until_it_is_trusted(folder_of):
    message = refusal(folder_of("own_code"))
    assert "this model runs code that comes with its checkpoint (eva_clip.EvaCLIPModel)" in message
    assert "set trust_remote_code: true (--trust_remote_code) if you trust it" in message
    detected = detect(folder_of("own_code"), ModelSettings(trust_remote_code=True))
    assert "names code of its own" in detected.reason


def test_a_checkpoint_of_such_a_model_brings_the_code_along(fresh, tmp_path):
    fresh("own_code").save_pretrained(tmp_path)
    assert (tmp_path / "eva_clip.py").is_file()
    assert "trust_remote_code: true" in refusal(tmp_path)


def test_encoder_mode_names_the_family_of_code_that_does_not_look_like_a_dual_encoder(folder_of, texts, tmp_path):
    folder = _renamed(folder_of("own_code"), tmp_path)
    message = refusal(folder, trust_remote_code=True)
    assert "models of type 'two_towers' are not supported" in message
    assert (
        "names code of its own (two_towers.TwoTowerModel): set encoder_mode to the kind of model that it is" in message
    )
    assert "set trust_remote_code: true" in refusal(folder, encoder_mode="clip")
    settings = ModelSettings(trust_remote_code=True, encoder_mode="clip")
    model = VisualRetrievalModel.from_pretrained(str(folder), settings)
    expected = VisualRetrievalModel.from_pretrained(folder_of("own_code"), ModelSettings(trust_remote_code=True))
    assert torch.equal(model.get_text_features(texts), expected.get_text_features(texts))


def test_code_that_is_no_dual_encoder_is_refused_with_what_it_lacks(tmp_path):
    folder = Path(tiny_own_code(tmp_path))
    code = (folder / "eva_clip.py").read_text()
    (folder / "eva_clip.py").write_text(code.replace("def encode_text", "def read_text"))
    assert "it has no get_text_features or encode_text; write a family" in refusal(folder, trust_remote_code=True)
    (folder / "eva_clip.py").write_text(code.replace("self.text_projection", "self.projection"))
    state = load_file(folder / "model.safetensors")
    renamed = {name.replace("text_projection", "projection"): tensor for name, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert "projection.weight belongs to neither tower" in refusal(folder, trust_remote_code=True)


def _renamed(folder: str, into: Path) -> Path:
    """The same model under a model_type and a class name that tell nothing, with methods as transformers names them."""
    copy = into / "two_towers"
    shutil.copytree(folder, copy)
    code = (copy / "eva_clip.py").read_text().replace("EvaCLIP", "TwoTower").replace('"clip"', '"two_towers"')
    for old, new in (("encode_text", "get_text_features"), ("encode_image", "get_image_features")):
        code = code.replace(old, new)
    (copy / "two_towers.py").write_text(code)
    (copy / "eva_clip.py").unlink()
    config = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "two_towers.TwoTowerConfig", "AutoModel": "two_towers.TwoTowerModel"}
    config |= {"model_type": "two_towers", "auto_map": own, "architectures": ["TwoTowerModel"]}
    (copy / "config.json").write_text(json.dumps(config))
    return copy
