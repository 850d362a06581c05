"""Text encoders are used as their model cards say: pooling, prompts, positions, padding, ends of texts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional

from tests.cases import CASES
from tests.tiny import tiny_bert
from tests.tiny.text import tiny_gte, tiny_modernbert, tiny_new, tiny_xlm_roberta
from vembed.errors import ModelError
from vembed.model.detect import detect
from vembed.model.families.registry import family_of_mode
from vembed.model.families.text import TEXT
from vembed.model.families.text_recipes import RECIPES, SERIES
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.network.parameters import parameter_infos
from vembed.model.settings import ModelSettings
from vembed.types import Item

ARCHITECTURES = {
    "mpnet": "mean",
    "roberta": "mean",
    "xlm_roberta": "mean",
    "distilbert": "mean",
    "modernbert": "mean",
    "nomic_bert": "mean",
    "t5": "mean",
    "gte": "cls",
    "gte_own_code": "cls",
}
NO_NAMES = {"text_model_name": None, "image_model_name": None}
BGE_QUERY = "Represent this sentence for searching relevant passages: "


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: str | Path | None, **settings: object) -> str:
    with pytest.raises(ModelError) as caught:
        VisualRetrievalModel.from_pretrained(None if folder is None else str(folder), ModelSettings(**settings))
    return str(caught.value)


@torch.no_grad()
def plain_vectors(
    folder: str, texts: list[str], pooling: str, prompt: str = "", *, limit: int = 32, code: bool = False
) -> torch.Tensor:
    """What transformers gives, one text at a time, so that there is no padding to get wrong."""
    loader = transformers.T5EncoderModel if Path(folder).name.startswith("t5") else transformers.AutoModel
    model = loader.from_pretrained(folder, trust_remote_code=code).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        inputs = tokenizer(prompt + text, truncation=True, max_length=limit, return_tensors="pt")
        hidden = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state[0]
        vectors.append({"mean": hidden.mean(dim=0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    return functional.normalize(torch.stack(vectors), dim=-1)


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.allclose(ours, expected, atol=1e-5), (ours - expected).abs().max()
    assert (ours[0] - expected[1]).abs().max() > 1e-3, "all are alike: the comparison proves nothing"


@pytest.mark.parametrize(("name", "pooling"), ARCHITECTURES.items())
def test_each_architecture_gives_what_transformers_gives(name, pooling, model_of, folder_of, texts):
    expected = plain_vectors(folder_of(name), texts, pooling, code=name == "gte_own_code")
    assert_same(model_of(name).get_text_features(texts), expected)


def test_what_is_listed_as_tested_is_tested(folder_of):
    names = [name for name, case in CASES.items() if case.family == "text" and case.make is not None]
    types = {json.loads((Path(folder_of(name)) / "config.json").read_text())["model_type"] for name in names}
    assert {name for name, architecture in TEXT.architectures.items() if architecture.tested} == types


@pytest.mark.parametrize(
    ("name", "pooling", "query_prompt", "document_prompt"),
    [("bge", "cls", BGE_QUERY, ""), ("e5", "mean", "query: ", "passage: ")],
)
def test_known_models_have_the_prompts_of_their_cards(
    name, pooling, query_prompt, document_prompt, model_of, folder_of, texts
):
    model = model_of(name)
    for side, prompt in (("query", query_prompt), ("document", document_prompt)):
        ours = model.encode([Item(text=text) for text in texts], side=side).vectors
        assert_same(ours, plain_vectors(folder_of(name), texts, pooling, prompt, limit=model.spec.max_length))


@pytest.mark.parametrize("name", ["bge", *ARCHITECTURES, "qwen3_embedding", "embeddinggemma"])
def test_every_block_is_a_layer_with_a_rate_of_its_own(name, model_of):
    model = model_of(name).model
    blocks = model.text_tower.model.config.num_hidden_layers
    infos = parameter_infos(model)
    assert {info.num_layers for info in infos if info.part == "text"} == {blocks}
    assert {info.layer for info in infos if info.part == "text"} == set(range(blocks + 1))


def test_no_hub_id_is_known_twice():
    hub_ids = [hub_id.lower() for recipe in RECIPES for hub_id in recipe.hub_ids]
    assert len(RECIPES) >= 14
    assert len(set(hub_ids)) == len(hub_ids) > 40
    assert all(family_of_mode(series).name == "text" for series in SERIES)


@pytest.mark.parametrize("place", ["folder name", "cache", "_name_or_path"])
def test_a_folder_is_known_by_its_name_its_place_or_its_config(place, tmp_path):
    names = {
        "folder name": "multilingual-e5-base",
        "cache": "models--intfloat--multilingual-e5-base/snapshots/0123",
        "_name_or_path": "mine",
    }
    folder = tiny_xlm_roberta(tmp_path / names[place])
    if place == "_name_or_path":
        edit_json(Path(folder) / "config.json", _name_or_path="intfloat/multilingual-e5-base")
    detected = detect(folder, ModelSettings())
    spec = detected.spec
    assert (spec.recipe, spec.query_prompt, spec.document_prompt) == ("e5", "query: ", "passage: ")
    assert (spec.pooling, spec.normalize) == ({"text": "mean"}, True)
    sign = {
        "folder name": "the folder's name multilingual-e5-base",
        "cache": "its place in the hub's cache (intfloat/multilingual-e5-base)",
        "_name_or_path": "_name_or_path in config.json (intfloat/multilingual-e5-base)",
    }[place]
    assert f"{sign} makes it a model of e5, so with 'query: ' before queries and 'passage: ' before" in detected.reason
    assert detected.reason.endswith("pooling mean by its model card")
    off = detect(folder, ModelSettings(query_prompt="", document_prompt="", pooling="cls")).spec
    assert (off.query_prompt, off.document_prompt, off.pooling) == ("", "", {"text": "cls"})


def test_the_hub_id_itself_is_known(tmp_path, monkeypatch):
    folder = Path(tiny_bert(tmp_path / "snapshot", pooling="cls"))
    monkeypatch.setattr("vembed.model.detect.config_folder", lambda name, revision: folder)
    for name, line, prompt in (
        ("bge", "bge", BGE_QUERY),
        ("BAAI/bge-base-en-v1.5", "bge", BGE_QUERY),
        ("baai/BGE-large-zh", "bge", "为这个句子生成表示以用于检索相关文章："),
        ("Snowflake/snowflake-arctic-embed-m", "arctic", BGE_QUERY),
        ("BAAI/bge-m3", None, ""),  # an XLM-R, which this folder is not
        ("someone/finetuned-bge", None, ""),
    ):
        spec = detect(name, ModelSettings()).spec
        assert (spec.recipe, spec.query_prompt) == (line, prompt), name


def test_files_come_before_what_is_known(tmp_path):
    folder = Path(tiny_bert(tmp_path / "bge-small-en-v1.5", pooling="mean"))
    edit_json(folder / "config.json", _name_or_path="intfloat/e5-base")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "", "document": "text: "}}')
    detected = detect(str(folder), ModelSettings())
    assert detected.spec.pooling == {"text": "mean"}
    assert (detected.spec.query_prompt, detected.spec.document_prompt) == ("", "text: ")
    assert detected.reason == (
        "config.json says bert; the folder's name bge-small-en-v1.5 makes it a model of bge; pooling mean by 1_Pooling"
    )
    tuned = Path(tiny_bert(tmp_path / "tuned", pooling="mean"))  # tuned from an E5 elsewhere, perhaps without prompts
    edit_json(tuned / "config.json", _name_or_path="intfloat/e5-base")
    assert detect(str(tuned), ModelSettings()).spec.recipe is None


@pytest.mark.parametrize("name", ["modernbert", "distilbert", "gte", "t5"])
def test_a_pooling_that_the_model_s_class_does_not_have_is_refused(name, fresh):
    with pytest.raises(ModelError, match=r"pooling pooler: a .* model has no pooling of its own; use mean or cls"):
        fresh(name, pooling="pooler")


def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(fresh):
    message = r"max_length 9: the query prompt alone takes \d+ tokens, which leaves none for a text"
    with pytest.raises(ModelError, match=message):
        fresh("bge", max_length=9)
    with pytest.raises(ModelError, match="max_length 4: the document prompt alone takes 4 tokens"):
        fresh("bert", max_length=4, document_prompt="a photo")
    fresh("bert", max_length=5, document_prompt="a photo")


def test_a_line_can_be_asked_for(tmp_path):
    folder = tiny_bert(tmp_path / "plain")
    spec = detect(folder, ModelSettings(encoder_mode="bge")).spec
    assert (spec.recipe, spec.pooling, spec.query_prompt) == ("bge", {"text": "cls"}, BGE_QUERY)
    spec = detect(tiny_bert(tmp_path / "bge-large-zh"), ModelSettings(encoder_mode="e5")).spec
    assert (spec.recipe, spec.pooling, spec.query_prompt) == ("e5", {"text": "mean"}, "query: ")
    spec = detect(tiny_bert(tmp_path / "bge-small-zh"), ModelSettings(encoder_mode="bge")).spec
    assert spec.query_prompt == "为这个句子生成表示以用于检索相关文章："
    assert detect(folder, ModelSettings(encoder_mode="bert")).spec.recipe is None
    assert detect(tiny_modernbert(tmp_path / "m"), ModelSettings(encoder_mode="modernbert")).spec.family == "text"


def test_a_line_that_does_not_fit_is_refused(tmp_path):
    plain = tiny_bert(tmp_path / "plain")
    pooled = tiny_bert(tmp_path / "pooled", pooling="mean")
    message = "encoder_mode 'qwen3_embedding' does not fit: those models are of type qwen3; this one is bert"
    assert message in refusal(plain, encoder_mode="qwen3_embedding")
    assert "encoder_mode 'modernbert' does not fit: this is a bert model" in refusal(plain, encoder_mode="modernbert")
    message = "encoder_mode 'bge' does not fit: bge pools by cls, and the folder's 1_Pooling says mean"
    assert message in refusal(pooled, encoder_mode="bge")
    VisualRetrievalModel.from_pretrained(plain, ModelSettings(encoder_mode="e5")).save_pretrained(tmp_path / "saved")
    assert detect(str(tmp_path / "saved"), ModelSettings(encoder_mode="e5")).spec.recipe == "e5"
    message = "encoder_mode 'bge' does not fit: this checkpoint was tuned as a model of e5"
    assert message in refusal(tmp_path / "saved", encoder_mode="bge")
    VisualRetrievalModel.from_pretrained(plain).save_pretrained(tmp_path / "unknown")
    assert "this checkpoint says itself how it is used" in refusal(tmp_path / "unknown", encoder_mode="bge")


def test_code_that_a_model_needs_is_named_and_saved_with_it(tmp_path, texts):
    folder = tiny_new(tmp_path / "gte-base-en-v1.5")
    message = refusal(folder)
    assert "needs code of its own" in message
    assert "trust_remote_code: true" in message
    model = VisualRetrievalModel.from_pretrained(folder, ModelSettings(trust_remote_code=True))
    assert (model.spec.recipe, model.spec.pooling) == ("gte", {"text": "cls"})
    plain = VisualRetrievalModel.from_pretrained(tiny_gte(tmp_path / "native"))
    assert torch.allclose(model.get_text_features(texts), plain.get_text_features(texts), atol=1e-6)
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").glob("*.py")} == {"configuration_new.py", "modeling_new.py"}
    shutil.rmtree(folder)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path / "saved"), ModelSettings(trust_remote_code=True))
    assert torch.equal(again.get_text_features(texts), model.get_text_features(texts))


@pytest.mark.slow
def test_code_may_lie_in_a_repository_of_its_own(tmp_path):
    """As that of GTE does; here it is in the hub's cache, where a download puts it."""
    folder = Path(tiny_new(tmp_path / "model"))
    names = ("configuration_new.NewConfig", "modeling_new.NewModel")
    auto_map = {kind: f"some/impl--{name}" for kind, name in zip(("AutoConfig", "AutoModel"), names, strict=True)}
    edit_json(folder / "config.json", auto_map=auto_map)
    repository = tmp_path / "cache" / "models--some--impl"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    program = (
        "from vembed.model.modeling import VisualRetrievalModel; from vembed.model.settings import ModelSettings; "
        f"model = VisualRetrievalModel.from_pretrained({str(folder)!r}, ModelSettings(trust_remote_code=True)); "
        f"model.save_pretrained({str(tmp_path / 'saved')!r}); print(model.get_text_features(['red']).shape)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", program]
    for name in ("configuration_new.py", "modeling_new.py"):
        (folder / name).rename(snapshot / name)
    opened = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert opened.stdout.strip() == "torch.Size([1, 24])", opened.stderr
    assert {path.name for path in (tmp_path / "saved").glob("*.py")} == {"configuration_new.py", "modeling_new.py"}
    shutil.rmtree(repository)
    gone = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "model 'some/impl' is neither a local folder nor a Hugging Face model that can be reached" in gone.stderr


@pytest.mark.parametrize("name", ["bge", "sentence", "modernbert", "t5", "gte_own_code", "qwen3_embedding"])
def test_a_composed_model_reads_texts_as_its_text_tower_does(name, model_of, folder_of, texts, tmp_path):
    settings = ModelSettings(
        text_model_name=folder_of(name), image_model_name=folder_of("timm"), trust_remote_code=name == "gte_own_code"
    )
    model = VisualRetrievalModel.from_pretrained(None, settings)
    for side in ("query", "document"):
        items = [Item(text=text) for text in texts]
        ours, alone = model.encode(items, side=side).vectors, model_of(name).encode(items, side=side).vectors
        assert_same(ours, functional.normalize(alone, dim=-1))
    model.save_pretrained(tmp_path)
    again = VisualRetrievalModel.from_pretrained(str(tmp_path), settings.model_copy(update=NO_NAMES))
    assert torch.equal(again.get_text_features(texts), model.get_text_features(texts))


def test_the_prompts_of_a_known_text_tower_reach_a_composed_model(folder_of, texts):
    settings = ModelSettings(text_model_name=folder_of("e5"), image_model_name=folder_of("timm"))
    detected = detect(None, settings)
    assert (detected.spec.query_prompt, detected.spec.document_prompt) == ("query: ", "passage: ")
    assert "text: config.json says bert; the folder's name e5-small-v2 makes it a model of e5" in detected.reason
