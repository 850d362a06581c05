"""A folder of sentence-transformers gives here what it gives there, and what is saved of it gives it there again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from tests.tiny import tiny_bert
from tests.tiny.sentence import Dense, Dropout, LayerNorm, Normalize, Pooling, sentence_folder
from vembed.errors import ModelError
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.types import Item

WIDTH = 24
MODULES = {
    "mean": lambda: [Pooling(WIDTH, "mean"), Normalize()],
    "cls, not of length 1": lambda: [Pooling(WIDTH, "cls")],
    "max": lambda: [Pooling(WIDTH, "max"), Normalize()],
    "last": lambda: [Pooling(WIDTH, "lasttoken"), Normalize()],
    "sqrt": lambda: [Pooling(WIDTH, "mean_sqrt_len_tokens")],
    "weighted": lambda: [Pooling(WIDTH, "weightedmean"), Normalize()],
    "cls and mean": lambda: [Pooling(WIDTH, ("cls", "mean")), Normalize()],
    "all, in an order of their own": lambda: [
        Pooling(WIDTH, ("lasttoken", "weightedmean", "mean", "cls", "max", "mean_sqrt_len_tokens"))
    ],
    "one layer": lambda: [Pooling(WIDTH, "mean"), Dense(WIDTH, 16), Normalize()],
    "EmbeddingGemma's layers": lambda: [
        Pooling(WIDTH, "mean"),
        Dense(WIDTH, 96, bias=False, activation_function=nn.Identity()),
        Dense(96, WIDTH, bias=False, activation_function=nn.Identity()),
        Normalize(),
    ],
    "layers of every kind": lambda: [
        Pooling(WIDTH, ("max", "mean")),
        Normalize(),
        Dense(48, 20, activation_function=nn.GELU(), use_residual=True),
        LayerNorm(20),
        Dropout(0.3),
        Dense(20, 20, activation_function=nn.ReLU(), use_residual=True),
    ],
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def layered(bert, tmp_path):
    return Path(sentence_folder(tmp_path / "layered", bert, MODULES["one layer"]()))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        VisualRetrievalModel.from_pretrained(str(folder))
    return str(caught.value)


def assert_equal_on_both_sides(ours: VisualRetrievalModel, folder: str | Path, texts: list[str]) -> None:
    theirs = SentenceTransformer(str(folder), device="cpu")
    for side, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        vectors = ours.encode([Item(text=text) for text in texts], side=side).vectors
        expected = encode(texts, convert_to_tensor=True)
        assert vectors.shape == expected.shape
        assert torch.allclose(vectors, expected, atol=1e-5)
        assert (vectors[0] - expected[1]).abs().max() > 1e-3, "all are alike: the comparison proves nothing"


def with_and_without_prompts():
    """Every module with its prompt pooled; without, two in the quick tests and all in the whole suite."""
    quick = ("mean", "layers of every kind")
    return [
        pytest.param(name, pooled, marks=() if pooled or name in quick else pytest.mark.slow)
        for name in MODULES
        for pooled in (True, False)
    ]


@pytest.mark.parametrize(("name", "include_prompt"), with_and_without_prompts())
def test_every_module_is_read_and_written(name, include_prompt, bert, texts, tmp_path):
    modules = MODULES[name]()
    modules[0].include_prompt = include_prompt
    prompts = {"query": "what is the ", "document": "a photo: ", "clustering": "a kind of "}
    folder = sentence_folder(tmp_path / "base", bert, modules, prompts=prompts)
    ours = VisualRetrievalModel.from_pretrained(folder)
    assert_equal_on_both_sides(ours, folder, texts)
    ours.save_pretrained(tmp_path / "saved")
    assert_equal_on_both_sides(ours, tmp_path / "saved", texts)
    assert SentenceTransformer(str(tmp_path / "saved"), device="cpu").prompts == prompts
    for file in ("vembed_config.json", None):  # with our own file, then by those of sentence-transformers alone
        again = VisualRetrievalModel.from_pretrained(str(tmp_path / "saved"))
        assert torch.equal(again.get_text_features(texts), ours.get_text_features(texts))
        if file is not None:
            (tmp_path / "saved" / file).unlink()


def test_a_prompt_that_is_not_pooled_is_still_read(bert, texts, tmp_path):
    modules = MODULES["mean"]()
    modules[0].include_prompt = False
    prompts = {"query": "what is the "}
    model = VisualRetrievalModel.from_pretrained(sentence_folder(tmp_path / "base", bert, modules, prompts=prompts))
    inputs = model.processor.prepare([Item(text="red circle"), Item(text="a red circle beside")], "query")
    pooled, real = inputs.tensors["pooled_tokens"].values, inputs.tensors["attention_mask"].values
    num_prompt_tokens = len(model.processor._texts.tokenizer("what is the ")["input_ids"]) - 1
    assert pooled.sum(dim=1).tolist() == (real.sum(dim=1) - num_prompt_tokens).tolist()
    both = model.encode([Item(text=text) for text in texts], side="query").vectors
    without = model.encode([Item(text=text) for text in texts], side="document").vectors
    assert (both - without).norm(dim=1).min() > 1e-3


def test_of_an_empty_text_the_prompt_is_pooled(bert, tmp_path):
    modules = [Pooling(WIDTH, "max", include_prompt=False)]
    prompts = {"query": "what is the "}
    model = VisualRetrievalModel.from_pretrained(sentence_folder(tmp_path / "base", bert, modules, prompts=prompts))
    tokenizer = model.processor._texts.tokenizer
    tokenizer.backend_tokenizer.post_processor = None  # no token around the text, so that nothing else is left
    vectors = model.encode([Item(text=""), Item(text="a red circle")], side="query").vectors
    assert vectors.isfinite().all()


def test_a_default_prompt_stands_for_sides_without_one(bert, texts, tmp_path):
    prompts = {"any": "what is "}
    folder = sentence_folder(tmp_path / "a", bert, MODULES["mean"](), prompts=prompts, default_prompt_name="any")
    model = VisualRetrievalModel.from_pretrained(folder)
    assert (model.spec.query_prompt, model.spec.document_prompt) == ("what is ", "what is ")
    expected = SentenceTransformer(folder, device="cpu").encode(texts, convert_to_tensor=True)
    assert torch.allclose(model.get_text_features(texts), expected, atol=1e-5)
    prompts = {"query": "what is "}
    folder = sentence_folder(tmp_path / "b", bert, MODULES["mean"](), prompts=prompts, default_prompt_name="query")
    spec = VisualRetrievalModel.from_pretrained(folder).spec
    assert (spec.query_prompt, spec.document_prompt) == ("what is ", "")


def test_layers_belong_to_the_text_tower(layered, items_for):
    model = VisualRetrievalModel.from_pretrained(str(layered)).model
    infos = {info.name: info for info in parameter_infos(model) if "layers_after" in info.name}
    assert sorted(infos) == ["text_tower.layers_after.0.linear.bias", "text_tower.layers_after.0.linear.weight"]
    for info in infos.values():
        assert (info.part, info.pretrained, info.layer, info.num_layers) == ("text", True, 2, 2)
        assert info.parameter.requires_grad
    assert model.dim == 16
    adapted = VisualRetrievalModel.from_pretrained(str(layered), ModelSettings(use_lora=True)).model
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert {name for name in learning if ".lora_" not in name} == {*infos, "logit_scale"}


def test_a_composed_model_has_the_layers_of_its_text_tower(layered, folder_of, texts, tmp_path):
    settings = ModelSettings(text_model_name=str(layered), image_model_name=folder_of("timm"))
    model = VisualRetrievalModel.from_pretrained(None, settings)
    alone = VisualRetrievalModel.from_pretrained(str(layered)).get_text_features(texts)
    assert model.spec.projection_dim == 16
    assert torch.allclose(model.get_text_features(texts), alone, atol=1e-6)
    model.save_pretrained(tmp_path / "saved")
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(again.get_text_features(texts), model.get_text_features(texts))
    opened = SentenceTransformer(str(tmp_path / "saved" / "text"), device="cpu")
    assert torch.allclose(opened.encode(texts, convert_to_tensor=True), alone, atol=1e-5)
    assert not list((tmp_path / "saved" / "image").rglob("*Dense*"))


def test_the_transformer_and_the_layers_may_lie_side_by_side(layered, texts, tmp_path):
    expected = VisualRetrievalModel.from_pretrained(str(layered)).get_text_features(texts)
    (layered / "0_Transformer").mkdir()
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json")
    for name in names:
        (layered / name).rename(layered / "0_Transformer" / name)
    modules = json.loads((layered / "modules.json").read_text())
    (layered / "modules.json").write_text(json.dumps([{**modules[0], "path": "0_Transformer"}, *modules[1:]]))
    model = VisualRetrievalModel.from_pretrained(str(layered))
    assert torch.equal(model.get_text_features(texts), expected)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(VisualRetrievalModel.from_pretrained(str(tmp_path / "saved")).get_text_features(texts), expected)


def test_pooling_settings_take_the_place_of_the_folder_s(layered, texts):
    settings = ModelSettings(pooling="cls")
    model = VisualRetrievalModel.from_pretrained(str(layered), settings)
    assert (model.spec.pooling, model.model.dim) == ({"text": "cls"}, 16)


def test_layers_are_saved_beside_an_adapter_as_they_were_tuned(layered, texts, tmp_path):
    model = VisualRetrievalModel.from_pretrained(str(layered), ModelSettings(use_lora=True))
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(tmp_path / "adapter", merge_adapters=False)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "adapter"))
    assert torch.allclose(again.get_text_features(texts), model.get_text_features(texts), atol=1e-6)
    untouched = VisualRetrievalModel.from_pretrained(str(layered)).get_text_features(texts)
    assert (untouched - again.get_text_features(texts)).norm(dim=1).min() > 1e-3


def test_layers_that_do_not_fit_are_refused(layered, tmp_path):
    config, weights = layered / "2_Dense" / "config.json", layered / "2_Dense" / "model.safetensors"
    edit_json(layered / "1_Pooling" / "config.json", pooling_mode=["cls", "mean"])
    assert "2_Dense/config.json takes vectors of 24 numbers; what comes before gives 48" in refusal(layered)
    edit_json(layered / "1_Pooling" / "config.json", pooling_mode="mean")
    edit_json(config, out_features=17)
    assert "model.safetensors does not fit" in refusal(layered)
    edit_json(config, out_features=16, activation_function="evil.Code")
    assert "activation_function evil.Code is not supported; known are: Identity, Tanh" in refusal(layered)
    edit_json(config, activation_function="torch.nn.Tanh", module_input_name="token_embeddings")
    assert "Dense works on token_embeddings; only layers on the pooled vector are supported" in refusal(layered)
    edit_json(config, module_input_name="sentence_embedding")
    state = load_file(weights)
    save_file({"linear.weight": state["linear.weight"]}, weights)
    assert "model.safetensors does not fit" in refusal(layered)
    weights.write_bytes(weights.read_bytes()[:50])
    assert "model.safetensors does not fit" in refusal(layered)
    weights.unlink()
    assert "2_Dense/model.safetensors is missing: the weights of a layer that modules.json names" in refusal(layered)
    config.write_text("{}")
    assert "2_Dense/config.json is missing" in refusal(layered)
    config.write_text('{"in_features": 24}')
    assert "does not describe a Dense layer: KeyError 'out_features'" in refusal(layered)


def test_pickled_layers_are_read_as_tensors_where_that_is_allowed(layered, texts, tmp_path):
    expected = VisualRetrievalModel.from_pretrained(str(layered)).get_text_features(texts)
    weights, pickled = layered / "2_Dense" / "model.safetensors", layered / "2_Dense" / "pytorch_model.bin"
    torch.save(load_file(weights), pickled)
    weights.unlink()
    assert "pytorch_model.bin is a pickle, which can run code when it is opened" in refusal(layered)
    allowed = ModelSettings(allow_pickled_weights=True)
    opened = VisualRetrievalModel.from_pretrained(str(layered), allowed)
    assert torch.equal(opened.get_text_features(texts), expected)
    torch.save({"linear.weight": Path("evil")}, pickled)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin does not fit"):
        VisualRetrievalModel.from_pretrained(str(layered), allowed)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "sentence_transformers.models.Router",
            "names sentence_transformers.models.Router; only Transformer, Pooling,",
        ),
        (
            "sentence_transformers.models.WeightedLayerPooling",
            "names sentence_transformers.models.WeightedLayerPooling;",
        ),
        ("custom_st.Transformer", "names custom_st.Transformer; only"),
    ],
)
def test_modules_that_cannot_be_expressed_are_named(kind, message, layered):
    modules = json.loads((layered / "modules.json").read_text())
    modules[2] = {**modules[2], "type": kind}
    (layered / "modules.json").write_text(json.dumps(modules))
    assert message in refusal(layered)
    modules[0] = {**modules[0], "type": kind}
    (layered / "modules.json").write_text(json.dumps(modules[:1]))
    (layered / "config.json").unlink()  # a model of such modules may have no config.json at all
    assert message in refusal(layered)


def test_modules_in_another_order_or_elsewhere_are_refused(layered):
    modules = json.loads((layered / "modules.json").read_text())
    (layered / "modules.json").write_text(json.dumps([modules[0], modules[2], modules[1]]))
    assert "names Transformer, Dense, Pooling in this order; a Transformer comes first" in refusal(layered)
    (layered / "modules.json").write_text(json.dumps([*modules[:2], {**modules[2], "path": "../2_Dense"}]))
    assert "names '../2_Dense', which is no subfolder of the model" in refusal(layered)
    (layered / "modules.json").write_text(json.dumps({"0": "x"}))
    assert "is no list of modules with type and path" in refusal(layered)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transformer_task": "fill-mask"}, "runs this model for fill-mask; only feature-extraction is supported"),
        ({"config_kwargs": {"is_causal": False}}, "sets is_causal (config) here, which is not supported"),
        ({"tokenizer_args": {"add_eos_token": True}}, "sets add_eos_token (processor) here, which is not supported"),
    ],
)
def test_settings_that_would_change_an_embedding_are_refused(settings, message, layered):
    edit_json(layered / "sentence_bert_config.json", **settings)
    assert message in refusal(layered)
    edit_json(layered / "sentence_bert_config.json", **dict.fromkeys(settings))
    edit_json(layered / "sentence_bert_config.json", transformer_task="feature-extraction")
    edit_json(layered / "sentence_bert_config.json", model_args={"attn_implementation": "eager"})
    VisualRetrievalModel.from_pretrained(str(layered))


def test_a_comparison_by_distance_is_refused(layered):
    edit_json(layered / "config_sentence_transformers.json", similarity_fn_name="manhattan")
    assert "compared by manhattan distance; only cosine and dot are known" in refusal(layered)


def test_layers_for_images_are_refused(folder_of, layered, tmp_path):
    shutil.copytree(folder_of("vit"), tmp_path / "vit")
    for name in ("modules.json", "1_Pooling", "2_Dense", "sentence_bert_config.json"):
        source = layered / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / "vit" / name)
    assert "2_Dense is for text models; this is a vision model" in refusal(tmp_path / "vit")
