"""ColQwen: a vision-language model by its chat template, a projected vector for each token of a row's content."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from torch import nn

from tests.tiny.saving import write_json
from tests.unit.model.late_interaction.test_tokens import as_set, load
from tests.unit.model.test_contract import assert_same_rows, rows_of, shake
from vembed.errors import ModelError
from vembed.model.heads import heads_state
from vembed.model.network.parameters import parameter_infos
from vembed.types import ImageSource, Item

COLQWEN = {"encoder_mode": "colqwen", "projection_dim": 16}
PLAIN = {"num_query_tokens": 0, "document_tokens": 0}  # over those of the case


def items_of(texts, pictures):
    """Text, image, both, and several images."""
    sources = [ImageSource(pil=picture) for picture in pictures]
    words = [Item(text=text) for text in texts]
    images = [Item(images=(source,)) for source in sources]
    return [*words, *images, Item(text=texts[0], images=(sources[1],)), Item(images=tuple(sources[:3]))]


@torch.no_grad()
def plain_rows(folder: str, weight: torch.Tensor, items: list[Item], instruction: str = ""):
    """Per row, the projected state of every token of its conversation, and which tokens are its content's."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    rows, contents = [], []
    for item in items:
        system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
        parts = [{"type": "image", "image": source.pil} for source in item.images]
        parts += [{"type": "text", "text": item.text}] if item.text is not None else []
        inputs = processor.apply_chat_template(
            [[*system, {"role": "user", "content": parts}]],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        rows.append(nn.functional.normalize(hidden @ weight.T, dim=-1))
        ids = inputs["input_ids"][0]
        content = ids == processor.image_token_id
        words = processor.tokenizer(item.text or "", add_special_tokens=False)["input_ids"]
        starts = [place for place in range(len(ids)) if words and ids[place : place + len(words)].tolist() == words]
        if words:
            (start,) = starts
            content[start : start + len(words)] = True
        contents.append(content)
    return rows, contents


@pytest.mark.parametrize("name", ["colqwen", "colqwen3"])
def test_vectors_are_those_of_the_conversation_s_content(name, fresh, folder_of, texts, pictures):
    items = items_of(texts, pictures)
    masked = fresh(name, **PLAIN, mask_prompts=True, document_prompt="Find it.")
    whole = fresh(name, **PLAIN, mask_prompts=False, document_prompt="Find it.")
    weight = heads_state(masked.model)["heads.0.linear.weight"]
    rows, contents = plain_rows(folder_of(name), weight, items, "Find it.")
    assert_same_rows(rows_of(whole.encode(items)), rows, 1e-5)
    kept = [row[content] for row, content in zip(rows, contents, strict=True)]
    assert_same_rows(rows_of(masked.encode(items)), kept, 1e-5)
    assert all(len(few) < len(row) for few, row in zip(kept, rows, strict=True))


def test_prompts_are_masked_in_a_model_that_is_new(fresh):
    assert fresh("colqwen", mask_prompts=None).spec.mask_prompts


def test_queries_are_filled_up_at_their_end(fresh, texts, pictures):
    items = items_of(texts, pictures)
    model, plain = fresh("colqwen", **PLAIN | {"num_query_tokens": 12}), fresh("colqwen", **PLAIN)
    filled, queries = (rows_of(one.encode(items, side="query")) for one in (model, plain))
    assert [len(row) for row in filled] == [max(12, len(row)) for row in queries]
    assert_same_rows([row[: len(own)] for row, own in zip(filled, queries, strict=True)], queries, 1e-5)
    assert_same_rows(rows_of(model.encode(items)), rows_of(plain.encode(items)), 1e-6)


def test_a_text_that_is_cut_keeps_its_beginning(fresh, texts):
    long = max(texts, key=len)
    whole, cut = fresh("colqwen", **PLAIN), fresh("colqwen", **PLAIN, max_length=64)
    (full,), (part,) = (rows_of(model.encode([Item(text=long)])) for model in (whole, cut))
    assert 0 < len(part) < len(full)
    assert torch.allclose(part, full[: len(part)], atol=1e-5)  # a causal model: what follows is not seen


def test_a_multi_vector_encoder_of_a_vision_language_model_opens_here(folder_of, texts, pictures, tmp_path):
    dense = Dense(24, 16, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    torch.nn.init.orthogonal_(dense.linear.weight, generator=torch.Generator().manual_seed(1))
    modules = [Transformer(folder_of("colqwen3")), dense, MultiVectorMask(), Normalize("token_embeddings")]
    modules.append(HierarchicalTokenPooling(2, num_protected_tokens=0))
    theirs = MultiVectorEncoder(modules=modules, device="cpu")
    theirs.save_pretrained(str(tmp_path / "without"))
    with pytest.raises(ModelError, match="rendered without the beginning of an answer"):
        load(tmp_path / "without")
    theirs[0].processing_kwargs = {"chat_template": {"add_generation_prompt": True}}
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = load(tmp_path / "theirs")
    assert (model.spec.late.kind, model.spec.mask_prompts, model.model.has_new_heads) == ("vlm", False, False)
    pages = [Item(images=(ImageSource(pil=picture),)) for picture in pictures]
    found = [as_set(row) for row in rows_of(model.encode(pages))]
    assert_same_rows(found, [as_set(theirs.encode_document([picture])[0]) for picture in pictures], 1e-5)
    queries = rows_of(model.encode([Item(text=text) for text in texts], side="query"))
    assert_same_rows(queries, [theirs.encode_query([text])[0] for text in texts], 1e-5)
    shake(model).save_pretrained(tmp_path / "ours")
    opened = MultiVectorEncoder(str(tmp_path / "ours"), device="cpu")
    found = rows_of(model.encode([Item(text=text) for text in texts], side="query"))
    assert_same_rows(found, [opened.encode_query([text])[0] for text in texts], 1e-5)


def test_a_new_projection_is_a_head_beside_both_towers(fresh):
    infos = parameter_infos(fresh("colqwen").model)
    assert [info.name for info in infos if info.part == "heads"] == ["heads.0.linear.weight"]
    assert {info.part for info in infos} == {"text", "vision", "heads", "scale"}
    frozen = fresh("colqwen", freeze=("text", "vision")).model
    assert {info.part for info in parameter_infos(frozen) if info.parameter.requires_grad} == {"heads", "scale"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 64}, "image_size: a vision-language model keeps the shape of a picture"),
        ({"pooling": "mean"}, "keeps a vector per token"),
        ({"encoder_mode": "colpal"}, "did you mean 'colpali'"),
    ],
)
def test_settings_that_a_vision_language_model_does_not_support_are_refused(settings, message, fresh):
    with pytest.raises(ModelError, match=message):
        fresh("colqwen", **settings)


def test_masks_of_text_encoders_are_refused(fresh, tmp_path):
    fresh("colqwen3").save_pretrained(tmp_path)
    (tmp_path / "vembed_config.json").unlink()
    modules = json.loads((tmp_path / "modules.json").read_text())
    mask = next(Path(tmp_path, one["path"]) for one in modules if one["type"].endswith("MultiVectorMask"))
    write_json(mask / "config.json", {"skiplist_words": ["."]})
    with pytest.raises(ModelError, match=r"words that are left out, .* are for text encoders"):
        load(tmp_path)
