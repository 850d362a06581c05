"""Language models that embed: Qwen3-Embedding and EmbeddingGemma as their model cards say, others when asked for."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from tests.tiny.language import (
    GEMMA_PROMPTS,
    QWEN3_QUERY,
    tiny_gemma3_text,
    tiny_llama,
    tiny_qwen3,
    tiny_qwen3_embedding,
)
from vembed.errors import ModelError
from vembed.model.detect import detect
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.types import Item

SIDES = ("query", "document")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def embed(model: VisualRetrievalModel, texts: list[str], side: str) -> torch.Tensor:
    return model.encode([Item(text=text) for text in texts], side=side).vectors


def assert_same(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=tolerance), (ours - expected).abs().max()
    assert (ours[0] - expected[1]).abs().max() > 1e-3, "all are alike: the comparison proves nothing"


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_qwen3_embedding_is_used_as_its_card_says(side, model_of, folder_of, texts):
    prompt = QWEN3_QUERY if side == "query" else ""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("qwen3_embedding"), padding_side="left")
    model = transformers.AutoModel.from_pretrained(folder_of("qwen3_embedding"))
    batch = tokenizer(
        [prompt + text for text in texts], padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    assert not batch["attention_mask"][:, 0].all(), "no text is padded on the left"
    hidden = model(**batch).last_hidden_state
    assert_same(embed(model_of("qwen3_embedding"), texts, side), functional.normalize(hidden[:, -1], dim=-1))


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_embeddinggemma_is_used_as_its_card_says(side, model_of, folder_of, texts):
    folder = Path(folder_of("embeddinggemma"))
    tokenizer, model = (
        loader.from_pretrained(folder) for loader in (transformers.AutoTokenizer, transformers.AutoModel)
    )
    assert model.config.use_bidirectional_attention
    layers = [load_file(folder / name / "model.safetensors")["linear.weight"] for name in ("2_Dense", "3_Dense")]
    vectors = []
    for text in texts:
        inputs = tokenizer(GEMMA_PROMPTS[side] + text, truncation=True, max_length=32, return_tensors="pt")
        pooled = model(**inputs).last_hidden_state[0].mean(dim=0)
        vectors.append(layers[1] @ (layers[0] @ pooled))
    assert_same(embed(model_of("embeddinggemma"), texts, side), functional.normalize(torch.stack(vectors), dim=-1))


@pytest.mark.parametrize("name", ["qwen3_embedding", "embeddinggemma"])
def test_sentence_transformers_opens_the_same_folder_alike(name, model_of, folder_of, texts):
    theirs = SentenceTransformer(folder_of(name), device="cpu")
    for side, encode in zip(SIDES, (theirs.encode_query, theirs.encode_document), strict=True):
        assert_same(embed(model_of(name), texts, side), encode(texts, convert_to_tensor=True))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
@torch.no_grad()
def test_any_language_model_gives_its_last_token(name, model_of, folder_of, texts):
    model = transformers.AutoModel.from_pretrained(folder_of(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        vectors.append(model(**inputs).last_hidden_state[0, -1])
    assert_same(model_of(name).get_text_features(texts), functional.normalize(torch.stack(vectors), dim=-1))


@pytest.mark.parametrize(("name", "end"), [("qwen3_embedding", "<|endoftext|>"), ("embeddinggemma", "<eos>")])
def test_a_text_that_is_cut_keeps_its_end_token(name, end, fresh, texts):
    model = fresh(name, max_length=12, query_prompt="", document_prompt="")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model.base.model_name))
    inputs = model.processor.prepare([Item(text=text) for text in texts], "document")
    ids, mask = inputs.tensors["input_ids"].values, inputs.tensors["attention_mask"].values.bool()
    assert inputs.num_truncated >= 2
    assert ids.shape[1] == 12
    for row, real in zip(ids, mask, strict=True):
        assert row[real][-1] == tokenizer.convert_tokens_to_ids(end)
        assert (row[real] == tokenizer.convert_tokens_to_ids(end)).sum() == 1


@pytest.mark.parametrize("pooling", ["last", "cls", "mean", "weighted_mean"])
def test_padding_on_either_side_gives_the_same_embeddings(pooling, tmp_path, texts):
    vectors = {}
    for side in ("left", "right"):
        folder = Path(tiny_qwen3_embedding(tmp_path / side))
        edit_json(folder / "tokenizer_config.json", padding_side=side)
        edit_json(
            folder / "1_Pooling" / "config.json",
            pooling_mode={"last": "lasttoken"}.get(pooling, pooling).replace("_", ""),
        )
        model = VisualRetrievalModel.from_pretrained(str(folder))
        inputs = (
            model.processor.prepare([Item(text=text) for text in texts], "document").tensors["attention_mask"].values
        )
        assert (bool(inputs[:, 0].all()), bool(inputs[:, -1].all())) == (side == "right", side == "left")
        assert model.spec.padding_side == side
        vectors[side] = embed(model, texts, "document")
    assert_same(vectors["left"], vectors["right"], 1e-6)


def test_tokens_behind_padding_are_numbered_from_zero(model_of):
    tower = model_of("qwen3_embedding").model.text_tower
    seen = []
    handle = tower.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["position_ids"]), with_kwargs=True
    )
    ids, mask = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        tower(ids, mask)
    handle.remove()
    assert seen[0].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_no_keys_and_values_are_kept(model_of):
    for name in ("qwen3_embedding", "embeddinggemma", "llama"):
        tower = model_of(name).model.text_tower
        with torch.no_grad():
            output = tower.model(input_ids=torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3, dtype=torch.long))
        assert output.past_key_values is None


def test_a_language_model_embeds_only_where_its_files_or_the_user_say_so(tmp_path, texts):
    folder = tiny_qwen3(tmp_path / "qwen")
    with pytest.raises(
        ModelError, match="nothing in its files says that this qwen3 model embeds; encoder_mode: text uses"
    ):
        detect(folder, ModelSettings())
    spec = detect(folder, ModelSettings(encoder_mode="text")).spec
    assert (spec.pooling, spec.query_prompt, spec.padding_side) == ({"text": "last"}, "", "left")
    spec = detect(folder, ModelSettings(encoder_mode="qwen3_embedding")).spec
    assert (spec.recipe, spec.pooling, spec.query_prompt) == ("qwen3_embedding", {"text": "last"}, QWEN3_QUERY)
    named = detect(tiny_qwen3(tmp_path / "Qwen3-Embedding-0.6B"), ModelSettings())
    assert named.spec.query_prompt == QWEN3_QUERY
    assert named.reason.startswith("config.json says qwen3; the folder's name Qwen3-Embedding-0.6B makes it a model of")
    both = detect(tiny_gemma3_text(tmp_path / "gemma"), ModelSettings())
    assert both.spec.pooling == {"text": "mean"}
    assert both.reason.startswith("config.json says gemma3_text, and that it attends in both directions")
    files = detect(tiny_qwen3_embedding(tmp_path / "other"), ModelSettings())
    assert files.reason == "config.json says qwen3, and modules.json that it embeds; pooling last by 1_Pooling"


@torch.no_grad()
def test_one_that_sees_both_directions_is_an_embedder(tmp_path, texts):
    folder = tiny_qwen3(tmp_path / "both")
    causal = VisualRetrievalModel.from_pretrained(folder, ModelSettings(encoder_mode="text", pooling="mean"))
    edit_json(Path(folder) / "config.json", is_causal=False)
    model = VisualRetrievalModel.from_pretrained(folder)
    assert model.spec.pooling == {"text": "mean"}
    assert (model.get_text_features(texts) - causal.get_text_features(texts)).norm(dim=1).min() > 1e-3
    plain, tokenizer = (
        loader.from_pretrained(folder) for loader in (transformers.AutoModel, transformers.AutoTokenizer)
    )
    hidden = [plain(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt")) for text in texts]
    expected = torch.stack([output.last_hidden_state[0].mean(dim=0) for output in hidden])
    assert_same(model.get_text_features(texts), functional.normalize(expected, dim=-1))


def test_padding_is_on_the_left_where_a_tokenizer_names_no_side(tmp_path):
    folder = Path(tiny_qwen3(tmp_path / "Qwen3-Embedding-0.6B"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer.pop("padding_side") == "left"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert detect(str(folder), ModelSettings()).spec.padding_side == "left"
    assert detect(str(folder), ModelSettings(encoder_mode="text")).spec.padding_side == "left"


def test_embeddinggemma_without_its_layers_is_refused(tmp_path):
    message = "embeddinggemma sends the pooled vector through Dense layers, and they are not here"
    for folder, mode in (("embeddinggemma-300m", None), ("mine", "embeddinggemma")):
        with pytest.raises(ModelError, match=message):
            detect(tiny_gemma3_text(tmp_path / folder), ModelSettings(encoder_mode=mode))


def test_a_language_model_with_its_layers_is_a_text_tower(folder_of, texts, tmp_path):
    settings = ModelSettings(text_model_name=folder_of("embeddinggemma"), image_model_name=folder_of("timm"))
    model = VisualRetrievalModel.from_pretrained(None, settings)
    alone = VisualRetrievalModel.from_pretrained(folder_of("embeddinggemma"))
    assert (model.spec.query_prompt, model.spec.padding_side) == (GEMMA_PROMPTS["query"], alone.spec.padding_side)
    for side in SIDES:
        assert torch.allclose(embed(model, texts, side), embed(alone, texts, side), atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        embed(VisualRetrievalModel.from_pretrained(str(tmp_path)), texts, "query"), embed(model, texts, "query")
    )
    opened = SentenceTransformer(str(tmp_path / "text"), device="cpu")
    assert torch.allclose(opened.encode_query(texts, convert_to_tensor=True), embed(alone, texts, "query"), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_embedding", "embeddinggemma"])
def test_an_empty_text_has_an_embedding_of_its_own(name, model_of):
    model = model_of(name)
    alone = model.get_text_features([""])
    together = model.get_text_features(["a red circle", "", "what colour is the small yellow triangle"])
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert alone.isfinite().all()
    assert (together - together.roll(1, dims=0)).norm(dim=1).min() > 1e-3


def test_a_tokenizer_that_cannot_pad_is_taught_to(tmp_path, texts):
    folder = tiny_llama(tmp_path / "llama")
    assert transformers.AutoTokenizer.from_pretrained(folder).pad_token is None
    model = VisualRetrievalModel.from_pretrained(folder, ModelSettings(encoder_mode="text"))
    alone = torch.cat([model.get_text_features([text]) for text in texts])
    assert_same(model.get_text_features(texts), alone)
    model.save_pretrained(tmp_path / "saved")
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert_same(opened.encode(texts, convert_to_tensor=True), alone)
