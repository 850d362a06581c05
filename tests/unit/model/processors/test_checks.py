"""A tokenizer that gives tokens beyond the embedding table is refused when the model is opened, in every family."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cases import CASES
from tests.tiny.llava import tiny_llava
from tests.tiny.saving import with_unreadable_token
from vembed.errors import DataError, ModelError
from vembed.inference import Predictor
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings

TABLES = {
    "clip": ("text_model.embeddings.token_embedding.weight", ("text_config", "vocab_size")),
    "siglip": ("text_model.embeddings.token_embedding.weight", ("text_config", "vocab_size")),
    "bert": ("embeddings.word_embeddings.weight", ("vocab_size",)),
    "modernbert": ("embeddings.tok_embeddings.weight", ("vocab_size",)),
    "qwen3_embedding": ("embed_tokens.weight", ("vocab_size",)),
    "qwen2_vl": ("embed_tokens.weight", ("text_config", "vocab_size")),
    "colbert": ("word_embeddings.weight", ("vocab_size",)),
}


def with_table(name, folder, num_rows):
    """The tiny model of that name with only so many rows in its table."""
    CASES[name].make(str(folder))
    ending, keys = TABLES[name]
    config = json.loads((folder / "config.json").read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    before, place[keys[-1]] = place[keys[-1]], num_rows
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith((ending, "lm_head.weight"))]:
        tensors[key] = tensors[key][:num_rows].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return before


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_too_few_rows_is_refused_with_both_numbers(name, tmp_path):
    with_table(name, tmp_path, 20)
    settings = ModelSettings(model_name=str(tmp_path), **CASES[name].settings)
    both = r"(gives tokens up to number|writes token) \d+ .*, and its embedding table has 20 rows"
    with pytest.raises(ModelError, match=both):
        VisualRetrievalModel.from_pretrained(None, settings)


def test_one_row_too_few_is_refused_and_more_rows_are_let_be(bert_folder, tmp_path):
    config = json.loads((Path(bert_folder) / "config.json").read_text())
    tokens = Predictor(bert_folder).model.processor.tokenizer.get_vocab()
    assert max(tokens.values()) < config["vocab_size"]
    with_table("bert", tmp_path / "small", max(tokens.values()))
    with pytest.raises(ModelError, match=f"up to number {max(tokens.values())} .* {max(tokens.values())} rows"):
        Predictor(tmp_path / "small")


def test_of_a_composed_model_the_text_tower_counts(vit_folder, tmp_path):
    with_table("bert", tmp_path, 20)
    settings = ModelSettings(text_model_name=str(tmp_path), image_model_name=vit_folder)
    with pytest.raises(ModelError, match="its embedding table has 20 rows"):
        VisualRetrievalModel.from_pretrained(None, settings)


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_beyond_the_table_is_refused_in_texts_alone(special, bert_folder, tmp_path):
    """EmbeddingGemma has such a token: nobody writes it, and a text without it is embedded as ever."""
    num_rows = with_unreadable_token(bert_folder, tmp_path / "model", special=special)
    predictor = Predictor(tmp_path / "model")
    assert predictor.encode_text("a red shoe").shape == (predictor.dim,)
    with pytest.raises(
        DataError, match=re.escape(f"the text holds '<soft_{num_rows}>', a token that this model has no")
    ):
        predictor.encode_text(f"a red <SOFT_{num_rows}> shoe")


def test_another_image_token_than_the_configs_is_refused(tmp_path):
    folder = Path(tiny_llava(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    key = next(key for key in ("image_token_id", "image_token_index") if key in config)
    config[key] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"for an image, and config.json says image_token_id: {config[key]}"):
        VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(encoder_mode="vlm"))
