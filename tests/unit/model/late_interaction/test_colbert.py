"""ColBERT: any text encoder with a projection, new or of a checkpoint, as plain transformers and others compute it."""

import json
import shutil
import string
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from torch import nn

from tests.tiny import tiny_bert
from tests.tiny.saving import write_json
from tests.unit.model.late_interaction.test_tokens import as_set, load
from tests.unit.model.test_contract import assert_same_rows, rows_of, shake
from vembed.errors import DataError, ModelError
from vembed.model.heads import heads_state
from vembed.model.network.parameters import parameter_infos
from vembed.types import ImageSource, Item

COLBERT = {"encoder_mode": "colbert", "projection_dim": 16}


def both_sides(model, texts):
    items = [Item(text=text) for text in texts]
    return {side: rows_of(model.encode(items, side=side)) for side in ("query", "document")}


def assert_equal_to(opened: MultiVectorEncoder, model, texts, *, ordered: bool = True) -> None:
    """The same vectors for queries and documents; pooled ones in any order."""
    ours = both_sides(model, texts)
    for side, encode in (("query", opened.encode_query), ("document", opened.encode_document)):
        theirs = [encode([text])[0] for text in texts]
        arrange = list if ordered or side == "query" else lambda rows: [as_set(row) for row in rows]
        assert_same_rows(arrange(ours[side]), arrange(theirs), 1e-5)


def built(folder: str, *extra: nn.Module, skipped: list[str] | None = None, **knobs: object) -> MultiVectorEncoder:
    """A MultiVectorEncoder as its users build one, with weights that tell inputs apart."""
    dense = Dense(24, 16, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    torch.nn.init.orthogonal_(dense.linear.weight, generator=torch.Generator().manual_seed(1))
    modules = [Transformer(folder, **knobs), dense, MultiVectorMask(skipped), Normalize("token_embeddings"), *extra]
    return MultiVectorEncoder(modules=modules, device="cpu", prompts={"query": "[Q] ", "document": "[D] "})


@torch.no_grad()
@pytest.mark.parametrize("num_query_tokens", [0, 12])
def test_vectors_are_those_of_the_plain_encoder_token_by_token(num_query_tokens, fresh, folder_of, texts):
    settings = COLBERT | {"num_query_tokens": num_query_tokens}
    model = fresh("colbert", **settings)
    weight = heads_state(model.model)["heads.0.linear.weight"]
    plain = transformers.AutoModel.from_pretrained(folder_of("colbert"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("colbert"))
    expected = {}
    for side, marker in (("query", "[Q] "), ("document", "[D] ")):
        rows = []
        for text in texts:  # one at a time: no padding to get wrong
            ids = tokenizer(marker + text, truncation=True, max_length=32)["input_ids"]
            missing = max(0, num_query_tokens - len(ids)) if side == "query" else 0
            mask = [1] * len(ids) + [0] * missing  # filled tokens are scored, but no other token sees them
            ids += [tokenizer.mask_token_id] * missing
            hidden = plain(torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0]
            rows.append(nn.functional.normalize(hidden @ weight.T, dim=-1))
        expected[side] = rows
    found = both_sides(model, texts)
    for side, rows in expected.items():
        assert_same_rows(found[side], rows, 1e-5)
    assert min(map(len, found["query"])) >= num_query_tokens


@pytest.mark.parametrize(
    ("knobs", "skipped"),
    [
        ({}, None),
        ({"query_length": 8, "document_length": 12}, None),
        ({"query_expansion": {"strategy": "fixed", "length": 10}}, list(string.punctuation)),
        ({"query_expansion": {"strategy": "min", "length": 10, "attend": True}}, None),
        ({"query_expansion": {"strategy": "min", "length": 10, "token": "[SEP]"}, "query_length": 14}, ["red", "nope"]),
    ],
)
def test_what_multi_vector_encoder_saved_opens_here_and_there_again(knobs, skipped, folder_of, texts, tmp_path):
    theirs = built(folder_of("colbert"), skipped=skipped, **knobs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = load(tmp_path / "theirs")
    assert (model.spec.family, model.spec.projection_dim, model.model.has_new_heads) == ("late_interaction", 16, False)
    assert_equal_to(theirs, model, texts)
    shake(model).save_pretrained(tmp_path / "ours")
    assert_equal_to(MultiVectorEncoder(str(tmp_path / "ours"), device="cpu"), model, texts)
    (tmp_path / "ours" / "vembed_config.json").unlink()
    again = both_sides(load(tmp_path / "ours"), texts)
    for side, rows in both_sides(model, texts).items():
        assert_same_rows(again[side], rows, 0)


@pytest.mark.parametrize("pooling", [{}, {"num_protected_tokens": 0}, {"normalize_embeddings": False}])
def test_pooling_of_a_multi_vector_encoder_is_kept(pooling, folder_of, texts, tmp_path):
    theirs = built(folder_of("colbert"), HierarchicalTokenPooling(2, **pooling))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = load(tmp_path / "theirs")
    assert model.spec.pool_factor == 2
    assert_equal_to(theirs, model, texts, ordered=False)
    model.save_pretrained(tmp_path / "ours")
    assert_equal_to(MultiVectorEncoder(str(tmp_path / "ours"), device="cpu"), model, texts, ordered=False)


def test_a_folder_of_pylate_opens_with_its_markers_and_without_punctuation(texts, tmp_path):
    folder = Path(tiny_bert(tmp_path / "pylate"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("[q]") != ["[q]"]
    _rename_token(folder, "picture", "[unused0]")
    layer = {"in_features": 24, "out_features": 16, "bias": False, "activation_function": "torch.nn.Identity"}
    write_json(folder / "1_Dense" / "config.json", layer)
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    save_file({"linear.weight": weight}, folder / "1_Dense" / "model.safetensors")
    kinds = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    write_json(folder / "modules.json", modules)
    general = {"model_type": "ColBERT", "query_prefix": "[unused0] ", "document_prefix": "[D] ", "query_length": 12}
    write_json(folder / "config_sentence_transformers.json", general)
    model = load(folder)
    assert (model.spec.num_query_tokens, model.spec.query_prompt) == (12, "[unused0] ")
    assert_equal_to(MultiVectorEncoder(str(folder), device="cpu"), model, [*texts, "yes, or no?!"])
    model.save_pretrained(tmp_path / "ours")
    assert_equal_to(MultiVectorEncoder(str(tmp_path / "ours"), device="cpu"), model, [*texts, "yes, or no?!"])


@pytest.mark.parametrize("metadata", [{}, {"dim": 16, "query_maxlen": 12, "doc_maxlen": 20, "mask_punctuation": False}])
def test_a_checkpoint_of_colbert_s_authors_opens(metadata, texts, tmp_path):
    folder = Path(tiny_bert(tmp_path / "stanford"))
    _rename_token(folder, "picture", "[unused0]")
    _rename_token(folder, "large", "[unused1]")
    weights = load_file(folder / "model.safetensors")
    weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    dim = metadata.get("dim", 128)
    weights["linear.weight"] = torch.randn(dim, 24, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
    if metadata:
        write_json(folder / "artifact.metadata", metadata)
    model = load(folder)
    assert model.reason.startswith("config.json says HF_ColBERT")
    assert (model.spec.projection_dim, model.model.has_new_heads) == (dim, False)
    assert_equal_to(MultiVectorEncoder(str(folder), device="cpu"), model, [*texts, "yes, or no?!"])
    shake(model).save_pretrained(tmp_path / "ours")
    assert_equal_to(MultiVectorEncoder(str(tmp_path / "ours"), device="cpu"), model, texts)
    write_json(folder / "artifact.metadata", {"dim": 20})
    with pytest.raises(ModelError, match=r"linear\.weight is \(\d+, 24\); .* say \(20, 24\)"):
        load(folder)


@pytest.mark.parametrize("name", ["colpali", "colqwen2", "colbert", "colqwen"])
def test_adapters_saved_alone_bring_the_projection_with_them(name, fresh, texts, tmp_path):
    model = fresh(name, use_lora=True)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    model.save_pretrained(tmp_path, merge_adapters=False)
    assert not (tmp_path / "model.safetensors").exists()
    ours = both_sides(model, texts)
    for settings in ({}, {"use_lora": True}):
        for side, rows in both_sides(load(tmp_path, **settings), texts).items():
            assert_same_rows(rows, ours[side], 1e-5)


def _rename_token(folder: Path, old: str, new: str) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {new if word == old else word: number for word, number in vocabulary.items()}
    assert new in tokenizer["model"]["vocab"]
    file.write_text(json.dumps(tokenizer))


def test_a_new_projection_is_a_head_and_starts_from_the_seed(fresh):
    model = fresh("colbert", seed=1).model
    assert model.has_new_heads
    heads = [info for info in parameter_infos(model) if info.part == "heads"]
    assert [(info.name, info.pretrained) for info in heads] == [("heads.0.linear.weight", False)]
    weight = heads_state(model)["heads.0.linear.weight"]
    assert torch.allclose(weight @ weight.T, torch.eye(16), atol=1e-5)
    assert torch.equal(weight, heads_state(fresh("colbert", seed=1).model)["heads.0.linear.weight"])
    assert not torch.equal(weight, heads_state(fresh("colbert", seed=2).model)["heads.0.linear.weight"])
    assert fresh("colbert", projection_dim=None).spec.projection_dim == 128
    frozen = fresh("colbert", freeze=("text",)).model
    assert [info.part for info in parameter_infos(frozen) if info.parameter.requires_grad] == ["scale", "heads"]


def test_the_base_of_a_new_projection_is_the_encoder_s_own_tokens(fresh, model_of, texts):
    model = fresh("colbert")
    own = model.encode([Item(text=text) for text in texts], features="tower")
    assert own.vectors.shape[2] == 24
    assert model.model.dim == 16


def test_the_temperature_starts_at_one(fresh):
    assert fresh("colbert").model.logit_scale.item() == 0
    assert fresh("colbert", temperature=0.5).model.logit_scale.item() == pytest.approx(0.6931, abs=1e-4)


def test_masked_prompts_leave_the_markers_out(fresh, texts):
    whole, masked = (both_sides(fresh("colbert", mask_prompts=on), texts) for on in (False, True))
    for side, rows in whole.items():
        assert_same_rows(masked[side], [torch.cat([row[:1], row[4:]]) for row in rows], 1e-6)  # [ q ] after [CLS]


def test_a_text_model_reads_no_images_and_a_projection_fits_or_not(fresh, pictures, folder_of, tmp_path):
    model = fresh("colbert")
    with pytest.raises(ModelError, match="a late_interaction model reads texts only; it was given an image"):
        model.encode([Item(images=(ImageSource(pil=pictures[0]),))])
    with pytest.raises(DataError, match="needs a text"):
        model.encode([Item()])
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="projection_dim 32: this checkpoint was built with 16"):
        load(tmp_path, projection_dim=32)
    assert load(tmp_path, projection_dim=16).spec.projection_dim == 16
    save_file({"linear.weight": torch.zeros(16, 20)}, tmp_path / "1_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match="1_Dense"):
        load(tmp_path)
    with pytest.raises(ModelError, match="image_size: a late_interaction model reads no images"):
        load(folder_of("colbert"), image_size=64, **COLBERT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_query_tokens": 40}, "num_query_tokens 40: this model reads at most 32 tokens"),
        ({"max_pixels": 4096}, "max_pixels: bert does not read pictures"),
        ({"pooling": "mean"}, "keeps a vector per token"),
        ({"max_length": 5}, "max_length 5: the query prompt alone takes 5 tokens, which leaves none for a text"),
    ],
)
def test_settings_that_a_text_model_does_not_support_are_refused(settings, message, fresh):
    with pytest.raises(ModelError, match=message):
        fresh("colbert", **settings)


def test_a_query_limit_of_the_checkpoint_bounds_what_queries_are_filled_up_to(folder_of, tmp_path):
    built(folder_of("colbert"), query_expansion={"strategy": "fixed", "length": 10}).save_pretrained(str(tmp_path))
    assert load(tmp_path).spec.num_query_tokens == 10
    with pytest.raises(ModelError, match="num_query_tokens 12: this checkpoint cuts queries to at most 10 tokens"):
        load(tmp_path, num_query_tokens=12)


def test_the_projection_of_a_single_vector_folder_is_used_for_tokens(bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "dense")
    plain = SentenceTransformer(str(tmp_path / "dense"), device="cpu")
    dense = Dense(24, 16, bias=True, activation_function=nn.Tanh())
    modules = [plain[0], plain[1], dense]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "saved"))
    model = load(tmp_path / "saved", encoder_mode="late_interaction", query_prompt="", document_prompt="")
    assert torch.equal(heads_state(model.model)["heads.0.linear.weight"], dense.linear.weight)
    assert_equal_to(MultiVectorEncoder(str(tmp_path / "saved"), device="cpu"), model, ["a red circle", "zebra"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_only_token_ids": [3]}, "keep_only_token_ids keeps some tokens of documents only"),
        ({"skiplist_words": ["a"], "skiplist_tasks": ["query", "document"]}, "leaves words out of queries"),
    ],
)
def test_masks_that_are_not_supported_are_refused(change, message, folder_of, tmp_path):
    built(folder_of("colbert")).save_pretrained(str(tmp_path))
    write_json(tmp_path / "2_MultiVectorMask" / "config.json", change)
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_other_families_refuse_a_vector_per_token(folder_of, tmp_path):
    built(folder_of("colbert")).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="describes a vector per token, which only late_interaction models have"):
        load(tmp_path, encoder_mode="text")
    assert load_file(tmp_path / "1_Dense" / "model.safetensors").keys() == {"linear.weight"}
