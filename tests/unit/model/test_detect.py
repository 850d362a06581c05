"""The family and spec of a model are detected from its JSON files; what is not supported is refused in plain words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_bert, tiny_clip, tiny_vit
from vembed.errors import ModelError
from vembed.model.detect import detect
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def refusal(name: str | Path | None, **settings: object) -> str:
    """What loading the model says."""
    with pytest.raises(ModelError) as caught:
        VisualRetrievalModel.from_pretrained(None if name is None else str(name), ModelSettings(**settings))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "family", "preset", "towers", "pooling"),
    [
        ("clip", "clip", "clip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("siglip", "siglip", "siglip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("siglip2", "siglip", "siglip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("naflex", "siglip", "siglip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("metaclip2", "clip", "clip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("chinese_clip", "clip", "clip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("altclip", "clip", "clip", ("text", "vision"), {"text": "own", "vision": "own"}),
        ("bert", "text", "text", ("text",), {"text": "mean"}),
        ("vit", "vision", "dino", ("vision",), {"vision": "cls"}),
        ("dinov2", "vision", "dino", ("vision",), {"vision": "cls"}),
        ("timm", "vision", "dino", ("vision",), {"vision": "own"}),
        ("dinov3_vit", "vision", "dino", ("vision",), {"vision": "cls"}),
        ("dinov3_convnext", "vision", "dino", ("vision",), {"vision": "own"}),
        ("mae", "vision", "dino", ("vision",), {"vision": "cls"}),
        ("siglip_vision", "vision", "dino", ("vision",), {"vision": "own"}),
        ("convnext", "vision", "dino", ("vision",), {"vision": "own"}),
    ],
)
def test_each_family_is_recognised(name, family, preset, towers, pooling, folder_of):
    detected = detect(folder_of(name), ModelSettings())
    spec = detected.spec
    assert (spec.family, spec.preset, spec.towers, spec.pooling) == (family, preset, towers, pooling)
    assert detected.reason.startswith("config.json says ")


def test_detecting_imports_no_heavy_library(folder_of):
    code = (
        "import sys; from vembed.model.detect import detect; from vembed.model.settings import ModelSettings; "
        f"detect({folder_of('clip')!r}, ModelSettings()); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_plain_bert_is_pooled_by_mean_and_normalised(tmp_path):
    spec = detect(tiny_bert(tmp_path), ModelSettings()).spec
    assert (spec.pooling, spec.normalize, spec.max_length) == ({"text": "mean"}, True, 32)


def test_sentence_transformers_files_are_read(tmp_path):
    folder = Path(tiny_bert(tmp_path, pooling="cls"))
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "q: ", "passage": "p: "}, "similarity_fn_name": "dot"},
    )
    write_json(folder / "modules.json", json.loads((folder / "modules.json").read_text())[:2])
    spec = detect(str(folder), ModelSettings()).spec
    assert (spec.pooling, spec.max_length) == ({"text": "cls"}, 24)
    assert (spec.normalize, spec.similarity) == (False, "dot")
    assert (spec.prompt("query"), spec.prompt("document")) == ("q: ", "p: ")
    model = VisualRetrievalModel.from_pretrained(str(folder))
    assert (model.get_text_features(["a red circle"]).norm() - 1).abs() > 0.1


def test_the_transformer_may_lie_in_a_folder_of_its_own(tmp_path):
    tiny_bert(tmp_path, pooling="mean")
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).rename(tmp_path / "0_Transformer" / name)
    write_json(tmp_path / "modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    assert VisualRetrievalModel.from_pretrained(str(tmp_path)).spec.pooling == {"text": "mean"}


def test_lower_casing_is_done_where_the_folder_asks_for_it(tmp_path):
    folder = Path(tiny_bert(tmp_path / "base", pooling="mean"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    write_json(folder / "tokenizer.json", tokenizer)
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)
    plain = VisualRetrievalModel.from_pretrained(str(folder))
    assert not torch.equal(plain.get_text_features(["ZEBRA"]), plain.get_text_features(["zebra"]))
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    lower = VisualRetrievalModel.from_pretrained(str(folder))
    assert torch.equal(lower.get_text_features(["ZEBRA"]), lower.get_text_features(["zebra"]))
    lower.save_pretrained(tmp_path / "saved")
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(again.get_text_features(["ZEBRA"]), lower.get_text_features(["zebra"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 33}, "max_length 33: this model reads at most 32 tokens"),
        ({"image_size": 64}, "image_size: a text model reads no images"),
        ({"max_pixels": 4096}, "max_pixels: a text model has no use for it"),
        ({"projection_dim": 8}, "a text model has no projection; composed and late-interaction models have"),
        ({"projection_head": "mlp"}, "projection_head: a text model has none; composed models have"),
        ({"projection_head": "linear"}, "projection_head: a text model has none; composed models have"),
        ({"encoder_mode": "vision"}, "encoder_mode 'vision' does not fit: this is a text model"),
        ({"encoder_mode": "txt"}, "encoder_mode 'txt' is unknown; did you mean 'text'"),
        ({"text_model_name": "x"}, "model_name and text_model_name exclude each other"),
    ],
)
def test_settings_that_a_text_model_does_not_support_are_refused(settings, message, folder_of):
    assert message in refusal(None, model_name=folder_of("bert"), **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip", {"max_pixels": 4096}, "max_pixels: a clip model has no use for it"),
        ("clip", {"pooling": "mean"}, "pools by its own code"),
        ("timm", {"pooling": "cls"}, "this timm_wrapper model has no CLS token"),
        ("siglip", {"max_length": 8}, "reads texts of exactly 16 tokens"),
        ("siglip", {"max_length": 20}, "reads at most 16 tokens"),
        ("vit", {"max_length": 8, "query_prompt": "a"}, "max_length, query_prompt: a vision model reads no text"),
        ("vit", {"image_size": 44}, "image_size 44 is no multiple of the model's patch size 8; use 40 or 48"),
        ("vit", {"pooling": "pooler"}, "lacks 2 weights of ViTModel, such as 'pooler.dense.bias'"),
    ],
)
def test_settings_that_an_image_model_does_not_support_are_refused(name, settings, message, folder_of):
    assert message in refusal(folder_of(name), **settings)


def test_all_problems_are_told_at_once(folder_of):
    message = refusal(folder_of("bert"), max_length=40, image_size=64, projection_dim=3)
    assert len(message.splitlines()) == 3


def test_families_may_be_named_by_their_usual_names(folder_of):
    for name, mode in (("bert", "bert"), ("bert", "text"), ("vit", "vit"), ("timm", "timm"), ("clip", "auto")):
        assert detect(folder_of(name), ModelSettings(encoder_mode=mode)).spec.family in ("text", "vision", "clip")


def test_a_composed_model_needs_two_towers_of_the_right_kind(folder_of):
    text, image = folder_of("bert"), folder_of("vit")
    assert "set image_model_name as well" in refusal(None, text_model_name=text)
    assert "set text_model_name as well" in refusal(None, image_model_name=image)
    assert "set model_name, or text_model_name and image_model_name" in refusal(None)
    assert "is a vision model; a text model is needed" in refusal(None, text_model_name=image, image_model_name=image)
    assert "is a clip model; a vision model is needed" in refusal(
        None, text_model_name=text, image_model_name=folder_of("clip")
    )


def test_the_text_tower_of_a_composed_model_has_no_pooling_of_its_own_code(folder_of):
    towers = {"text_model_name": folder_of("bert"), "image_model_name": folder_of("timm")}
    for pooling in ("own", "gem"):
        assert "a composed model pools the tokens of a text" in refusal(None, **towers, pooling=pooling)


def test_names_that_lead_nowhere_are_refused(tmp_path):
    assert "there is no model folder" in refusal(tmp_path / "nowhere")
    assert "neither a local folder nor a Hugging Face model that can be reached" in refusal("no-one/no-such-model")
    (tmp_path / "a.txt").write_text("")
    assert "is a file; give the folder" in refusal(tmp_path / "a.txt")
    assert "holds no config.json" in refusal(tmp_path)
    write_json(tmp_path / "final" / "vembed_config.json", {})
    assert "did you mean" in refusal(tmp_path)


def test_a_folder_without_usable_weights_is_refused(tmp_path):
    folder = Path(tiny_clip(tmp_path))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert "holds no weights; expected model.safetensors" in refusal(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    assert "pickled weights only (pytorch_model.bin)" in refusal(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (whole[:2], whole[:-8]):
        (folder / "model.safetensors").write_bytes(cut)
        assert "its weights are damaged or cut short" in refusal(folder)
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights of CLIPModel, such as 'visual_projection.weight'" in refusal(folder)


def test_missing_or_broken_files_are_refused(tmp_path):
    write_json(tmp_path / "list" / "config.json", [])
    assert "config.json cannot be read: it holds no JSON object, but list" in refusal(tmp_path / "list")
    folder = Path(tiny_clip(tmp_path / "clip"))
    (folder / "processor_config.json").unlink()
    assert "has no usable image processor" in refusal(folder)
    folder = Path(tiny_bert(tmp_path / "bert", pooling="mean"))
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer: none of tokenizer.json, vocab.txt is there" in refusal(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling/config.json is missing" in refusal(folder)
    (folder / "config.json").write_text("{")
    (folder / "modules.json").unlink()
    assert "config.json cannot be read" in refusal(folder)


def test_weights_of_another_shape_are_refused(tmp_path):
    folder = Path(tiny_bert(tmp_path))
    edit_json(folder / "config.json", intermediate_size=48)
    assert "cannot be loaded" in refusal(folder)


def test_architectures_and_poolings_that_are_not_supported_are_named(tmp_path):
    folder = Path(tiny_bert(tmp_path, pooling="mean"))
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode=["mean", "median"])
    assert "pools by mean + median; known are: cls, max, mean" in refusal(folder)
    (folder / "modules.json").unlink()
    edit_json(folder / "config.json", model_type="flava")
    assert "models of type 'flava' are not supported" in refusal(folder)


def test_a_spec_of_another_version_is_refused(tmp_path):
    folder = Path(tiny_vit(tmp_path))
    write_json(folder / "vembed_config.json", {"version": "9.0", "spec": {"family": "vision", "new_key": 1}})
    assert "(written by 9.0) does not fit this version" in refusal(folder)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    folder = Path(tiny_bert(tmp_path))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_json(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    )
    assert "models of type 'evil' are not supported" in refusal(folder)
    edit_json(folder / "config.json", model_type="bert")
    VisualRetrievalModel.from_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()
