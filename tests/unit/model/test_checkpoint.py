"""A checkpoint is a folder that gives back the same bits, and that other libraries open with equal results."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests.tiny import tiny_timm
from vembed.errors import CheckpointError, ModelError
from vembed.model.heads import heads_state
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item


def load(folder: Path, **settings: object) -> VisualRetrievalModel:
    return VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings))


def shake(model: VisualRetrievalModel, seed: int = 0) -> VisualRetrievalModel:
    """Change every weight a little, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", ["clip", "siglip", "bert", "vit", "dinov2", "timm"])
def test_plain_transformers_opens_the_folder_with_equal_weights(name, fresh, folder_of, tmp_path):
    model = shake(fresh(name))
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModel.from_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(folder_of(name))
    assert type(plain) is type(base)
    assert (
        load_file(tmp_path / "model.safetensors").keys()
        == load_file(Path(folder_of(name)) / "model.safetensors").keys()
    )
    ours = model.model.backbone_state("")
    assert all(torch.equal(tensor, ours[key]) for key, tensor in plain.state_dict().items() if key in ours)
    if name in ("clip", "siglip"):
        assert torch.equal(plain.logit_scale.reshape(1), model.model.logit_scale)
        transformers.AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["clip", "siglip", "bert"])
def test_sentence_transformers_puts_the_same_prompts_before_texts(name, fresh, texts, tmp_path):
    model = shake(fresh(name, query_prompt="what is ", document_prompt="a photo of "))
    model.save_pretrained(tmp_path)
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    for side, encode in (("query", opened.encode_query), ("document", opened.encode_document)):
        ours = model.encode([Item(text=text) for text in texts], side=side).vectors
        assert torch.allclose(encode(texts, convert_to_tensor=True), ours, atol=1e-5)
        alone = torch.cat([encode([text], convert_to_tensor=True) for text in texts])  # no long text to pad to
        assert torch.allclose(alone, ours, atol=1e-5)
    assert opened.similarity_fn_name == "cosine"


@pytest.mark.parametrize("pooling", ["cls", "max", "last", "pooler"])
def test_sentence_transformers_knows_every_text_pooling(pooling, fresh, texts, tmp_path):
    model = fresh("bert", pooling=pooling, max_length=8)
    model.save_pretrained(tmp_path)
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.allclose(opened.encode(texts, convert_to_tensor=True), model.get_text_features(texts), atol=1e-5)
    (tmp_path / "vembed_config.json").unlink()  # the same folder, read by its sentence-transformers files alone
    assert torch.equal(load(tmp_path).get_text_features(texts), model.get_text_features(texts))


@pytest.mark.parametrize(
    ("name", "image_size"), [("vit", 48), ("dinov2", 64), ("timm", 64), ("clip", 48), ("siglip", 48)]
)
def test_another_image_size_is_kept_and_others_fail_or_agree(name, image_size, fresh, pictures, tmp_path):
    model = fresh(name, image_size=image_size)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).get_image_features(pictures), model.get_image_features(pictures))
    opened = SentenceTransformer(str(tmp_path), device="cpu")
    if name in ("vit", "clip", "siglip"):  # they interpolate on request only
        with pytest.raises((ValueError, RuntimeError), match="size"):
            opened.encode(pictures[:1])
    else:
        theirs = torch.cat([opened.encode([image], convert_to_tensor=True) for image in pictures])
        assert torch.allclose(theirs, model.get_image_features(pictures), atol=1e-5)


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_resnet"])
def test_any_timm_model_takes_another_image_size(architecture, pictures, tmp_path):
    tiny_timm(tmp_path / "base", architecture=architecture, image_size=64)
    model = load(tmp_path / "base", image_size=96)
    model.save_pretrained(tmp_path / "saved")
    vectors = model.get_image_features(pictures)
    assert torch.equal(load(tmp_path / "saved").get_image_features(pictures), vectors)
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    theirs = torch.cat([opened.encode([image], convert_to_tensor=True) for image in pictures])
    assert torch.allclose(theirs, vectors, atol=1e-5)
    if architecture == "test_vit":
        with pytest.raises(ModelError, match="image_size 100: the model cannot read it"):
            load(tmp_path / "base", image_size=100)


def test_the_towers_of_a_composed_model_open_by_themselves(fresh, texts, pictures, tmp_path):
    model = shake(fresh("composed", query_prompt="what is "))
    model.save_pretrained(tmp_path)
    items = [Item(text=text) for text in texts]
    text_tower = load(tmp_path / "text")
    assert torch.equal(
        text_tower.encode(items, side="query").vectors, model.encode(items, side="query", features="tower").vectors
    )
    opened = SentenceTransformer(str(tmp_path / "text"), device="cpu")
    assert torch.allclose(
        opened.encode_query(texts, convert_to_tensor=True), text_tower.encode(items, side="query").vectors, atol=1e-5
    )
    images = load(tmp_path / "image").get_image_features(pictures)
    assert torch.equal(images, model.encode([_image(p) for p in pictures], features="tower").vectors)


def test_a_checkpoint_starts_a_further_stage(fresh, tmp_path):
    model = fresh("composed", temperature=0.5)
    shake(model).save_pretrained(tmp_path)
    stage = load(tmp_path, max_length=8, image_size=64, freeze=("text",))
    assert torch.equal(stage.model.logit_scale, model.model.logit_scale)
    assert all(
        torch.equal(a, b)
        for a, b in zip(heads_state(stage.model).values(), heads_state(model.model).values(), strict=True)
    )
    assert (stage.spec.max_length, stage.spec.image_size) == (8, 64)
    assert all(info.pretrained for info in parameter_infos(stage.model))
    with pytest.raises(ModelError, match="projection_dim 5: this checkpoint was built with 24"):
        load(tmp_path, projection_dim=5)


def test_broken_or_foreign_heads_are_refused(fresh, tmp_path):
    fresh("composed").save_pretrained(tmp_path)
    heads = tmp_path / "vembed_heads.safetensors"
    state = load_file(heads)
    save_file({name: tensor for name, tensor in state.items() if name != "heads.text.linear.weight"}, heads)
    with pytest.raises(CheckpointError, match=r"does not fit this model: heads\.text\.linear\.weight"):
        load(tmp_path)
    heads.write_bytes(heads.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="missing or broken"):
        load(tmp_path)
    heads.unlink()
    with pytest.raises(CheckpointError, match="missing or broken"):
        load(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_checkpoint_error(fresh, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        fresh("bert").save_pretrained(tmp_path / "file" / "inside")


def test_writing_does_not_touch_the_model(fresh, tmp_path):
    model = fresh("clip")
    model.model.train()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    model.save_pretrained(tmp_path)
    assert model.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not hasattr(model.model.backbone, "logit_scale")


def test_a_moved_checkpoint_needs_nothing_but_itself(fresh, texts, tmp_path):
    fresh("bert").save_pretrained(tmp_path / "here")
    vectors = load(tmp_path / "here").get_text_features(texts)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert torch.equal(load(tmp_path / "there").get_text_features(texts), vectors)


def _image(picture):
    return Item(images=(ImageSource(pil=picture),))
