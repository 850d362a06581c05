"""Every family gives what plain transformers gives, when that is used as its model card says."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

from vembed.model.modeling import VisualRetrievalModel
from vembed.types import ImageSource, Item


def plain(folder: str):
    return transformers.AutoModel.from_pretrained(folder).eval()


def assert_same_vectors(ours: torch.Tensor, plain_features: torch.Tensor) -> None:
    expected = functional.normalize(plain_features, dim=-1)
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-6)
    assert (ours[0] - expected[1]).abs().max() > 1e-3, "all features are alike: the comparison proves nothing"


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_dual_encoders_give_the_features_that_transformers_returns_as_pooler_output(
    name, model_of, folder_of, texts, pictures
):
    model, processor = plain(folder_of(name)), transformers.AutoProcessor.from_pretrained(folder_of(name))
    padding = "max_length" if name == "siglip" else True
    inputs = processor(text=texts, padding=padding, truncation=True, return_tensors="pt")
    assert_same_vectors(model_of(name).get_text_features(texts), model.get_text_features(**inputs).pooler_output)
    pixels = processor(images=pictures, return_tensors="pt")
    assert_same_vectors(model_of(name).get_image_features(pictures), model.get_image_features(**pixels).pooler_output)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last", "pooler", None])
@torch.no_grad()
def test_text_encoders_pool_as_asked_or_as_their_folder_says(pooling, fresh, folder_of, texts):
    model, tokenizer = plain(folder_of("bert")), transformers.AutoTokenizer.from_pretrained(folder_of("bert"))
    features = []
    for text in texts:  # one at a time: no padding to get wrong
        output = model(**tokenizer(text, truncation=True, max_length=24, return_tensors="pt"))
        hidden = output.last_hidden_state[0]
        by_pooling = {
            "cls": hidden[0],
            "last": hidden[-1],
            "max": hidden.max(dim=0).values,
            "pooler": output.pooler_output[0],
        }
        features.append(by_pooling.get(pooling, hidden.mean(dim=0)))
    settings = {} if pooling is None else {"pooling": pooling}
    assert_same_vectors(fresh("bert", **settings).get_text_features(texts), torch.stack(features))


@pytest.mark.parametrize("name", ["vit", "dinov2", "timm"])
@torch.no_grad()
def test_vision_encoders_pool_as_their_family_does(name, model_of, folder_of, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    output = plain(folder_of(name))(**processor(images=pictures, return_tensors="pt"))
    expected = output.pooler_output if name == "timm" else output.last_hidden_state[:, 0]
    assert_same_vectors(model_of(name).get_image_features(pictures), expected)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "dinov2", "timm"])
def test_resizing_in_uint8_and_normalising_later_gives_the_processor_s_own_pixels(name, model_of, folder_of, pictures):
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    items = [Item(images=(ImageSource(pil=image),)) for image in pictures]
    inputs = model_of(name).processor.prepare(items, "document")
    assert inputs.tensors["pixel_values"].values.dtype == torch.uint8
    finished = model_of(name).processor.finish(inputs).tensors["pixel_values"].values
    assert torch.equal(finished, processor(images=pictures, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("name", "image_size"), [("clip", 48), ("siglip", 48), ("vit", 48), ("dinov2", 64), ("timm", 64)]
)
@torch.no_grad()
def test_another_image_size_interpolates_position_embeddings(name, image_size, fresh, folder_of, pictures):
    model = fresh(name, image_size=image_size)
    pixels = model.processor.finish(
        model.processor.prepare([Item(images=(ImageSource(pil=image),)) for image in pictures], "document")
    ).tensors["pixel_values"]
    assert pixels.values.shape[1:] == (3, image_size, image_size)
    backbone = plain(folder_of(name))
    if name in ("clip", "siglip"):
        expected = backbone.get_image_features(pixels.values, interpolate_pos_encoding=True).pooler_output
    elif name == "vit":
        expected = backbone(pixels.values, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    else:
        expected = backbone(pixels.values).pooler_output
    assert_same_vectors(model.get_image_features(pictures), expected)


@torch.no_grad()
def test_a_folder_as_timm_itself_writes_it_gives_timm_s_own_features(pictures, tmp_path):
    network = timm.create_model("test_efficientnet", num_classes=10).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": "test_efficientnet", "num_classes": 10, "pretrained_cfg": network.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))
    network.reset_classifier(0)
    expected = network(torch.stack([transform(image) for image in pictures]))
    assert_same_vectors(VisualRetrievalModel.from_pretrained(str(tmp_path)).get_image_features(pictures), expected)


@torch.no_grad()
def test_a_pooler_that_was_never_trained_is_left_out(folder_of, texts, tmp_path):
    config = transformers.AutoConfig.from_pretrained(folder_of("bert"))
    language_model = transformers.BertForMaskedLM(config).eval()
    language_model.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("bert"))
    tokenizer.save_pretrained(tmp_path)
    model = VisualRetrievalModel.from_pretrained(str(tmp_path))
    assert not [name for name, _ in model.model.named_parameters() if "pooler" in name]
    hidden = [language_model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts[:4]]
    expected = torch.stack([vectors.mean(dim=0) for vectors in hidden])
    assert_same_vectors(model.get_text_features(texts[:4]), expected)


def test_texts_over_the_limit_are_cut_and_counted(model_of, texts):
    items = [Item(text=text) for text in texts]
    for name, limit in (("clip", 16), ("siglip", 16), ("bert", 24)):
        inputs = model_of(name).processor.prepare(items, "query")
        assert inputs.tensors["input_ids"].values.shape == (len(texts), limit)
        lengths = [
            len(ids)
            for ids in transformers.AutoTokenizer.from_pretrained(str(model_of(name).base.model_name))(texts)[
                "input_ids"
            ]
        ]
        assert inputs.num_truncated == sum(length > limit for length in lengths) >= 1


def test_siglip_pads_every_text_to_its_fixed_length(model_of):
    inputs = model_of("siglip").processor.prepare([Item(text="red")], "query")
    assert inputs.tensors["input_ids"].values.shape == (1, 16)
    assert inputs.tensors["attention_mask"].values.all()


def test_other_families_pad_to_the_longest_text_of_the_batch(model_of):
    inputs = model_of("bert").processor.prepare([Item(text="a red"), Item(text="a red circle")], "query")
    assert inputs.tensors["attention_mask"].values.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
