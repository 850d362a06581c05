"""A tower by itself gives what the model that it belongs to gets from it."""

import pytest
import torch

from tests.unit.model.test_contract import shake
from vembed.errors import ModelError
from vembed.model.encoders_factory import SimpleImageEncoder, SimpleTextEncoder
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item


def test_a_text_model_encodes_texts(folder_of, model_of, texts):
    encoder = SimpleTextEncoder.from_pretrained(folder_of("bert"))
    assert encoder.width == 24
    assert torch.equal(encoder.encode(texts), model_of("bert").get_text_features(texts))


def test_an_image_model_encodes_images(folder_of, model_of, pictures):
    encoder = SimpleImageEncoder.from_pretrained(folder_of("timm"))
    vectors = encoder.encode(pictures, batch_size=2)
    assert vectors.shape == (len(pictures), encoder.width)
    torch.testing.assert_close(vectors, model_of("timm").get_image_features(pictures), atol=1e-5, rtol=0)


@pytest.mark.parametrize("merge", [True, False])
def test_a_composed_checkpoint_lends_its_tuned_towers(merge, fresh, texts, pictures, tmp_path):
    use = {"query_prompt": "what is ", "pooling": "cls", "image_size": 64}
    model = fresh("composed", **use, use_lora=True, lora_target_modules=("query", "conv_pwl"))
    adapters = [parameter for name, parameter in model.model.named_parameters() if ".lora_B" in name]
    with torch.no_grad():
        for number, parameter in enumerate(adapters):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    model.save_pretrained(tmp_path, merge_adapters=merge)
    text, image = SimpleTextEncoder.from_pretrained(tmp_path), SimpleImageEncoder.from_pretrained(tmp_path)
    for side in ("query", "document"):
        expected = model.encode([Item(text=one) for one in texts], side=side, features="tower").vectors
        torch.testing.assert_close(text.encode(texts, side=side), expected, atol=1e-5, rtol=0)
    items = [Item(images=(ImageSource(pil=picture),)) for picture in pictures]
    expected = model.encode(items, features="tower").vectors
    torch.testing.assert_close(image.encode(pictures), expected, atol=1e-5, rtol=0)


def test_settings_apply(folder_of, fresh, texts):
    encoder = SimpleTextEncoder.from_pretrained(folder_of("bert"), ModelSettings(query_prompt="a photo of "))
    assert torch.equal(encoder.encode(texts), fresh("bert", query_prompt="a photo of ").get_text_features(texts))


@pytest.mark.parametrize(
    ("kind", "name"), [(SimpleTextEncoder, "vit"), (SimpleImageEncoder, "bert"), (SimpleTextEncoder, "clip")]
)
def test_a_model_of_another_kind_is_refused(kind, name, folder_of):
    with pytest.raises(ModelError, match=f"{kind.__name__}: a .* model is more than one .* it reads"):
        kind.from_pretrained(folder_of(name))


def test_the_models_weights_are_those_of_the_folder(fresh, texts, tmp_path):
    model = shake(fresh("bert"))
    model.save_pretrained(tmp_path)
    assert torch.equal(SimpleTextEncoder.from_pretrained(tmp_path).encode(texts), model.get_text_features(texts))
