"""Late interaction: transformers' own vectors token by token, and documents with fewer of them."""

import pytest
import torch
import transformers
from sentence_transformers import MultiVectorEncoder
from torch import Tensor

from tests.gradients import assert_gradients_equal
from tests.unit.model.test_contract import assert_same_rows, batch_of, embed, gradients, rows_of, shake
from vembed.errors import DataError, ModelError
from vembed.model.detect import detect
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import maxsim
from vembed.types import Embeddings, ImageSource, Item

NATIVE = ["colpali", "colqwen2", "colmodernvbert"]


def load(folder: object, **settings: object) -> VisualRetrievalModel:
    return VisualRetrievalModel.from_pretrained(str(folder), ModelSettings(**settings))


def image(picture: object) -> Item:
    return Item(images=(ImageSource(pil=picture),))


def plain(folder: str):
    return transformers.AutoModelForPreTraining.from_pretrained(folder).eval()


def as_set(row: Tensor) -> Tensor:
    """The vectors of a row in an order of their own, since MaxSim knows none."""
    return row[sorted(range(len(row)), key=lambda token: row[token].tolist())]


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_queries_and_pages_are_what_plain_transformers_gives_token_by_token(name, model_of, folder_of, texts, pictures):
    model, processor = plain(folder_of(name)), transformers.AutoProcessor.from_pretrained(folder_of(name))
    for made, ours in (
        (processor.process_queries(texts), model_of(name).encode([Item(text=text) for text in texts], side="query")),
        (processor.process_images(pictures), model_of(name).encode([image(picture) for picture in pictures])),
    ):
        vectors, mask = model(**made).embeddings, made["attention_mask"].bool()
        assert_same_rows(rows_of(ours), rows_of(Embeddings(vectors, mask)), 1e-5)
        assert (processor.score_retrieval([vectors[0]], list(vectors)) - maxsim(ours, ours)[:1]).abs().max() < 1e-3


@pytest.mark.parametrize("name", NATIVE)
def test_pages_of_one_document_stand_side_by_side(name, model_of, pictures):
    model = model_of(name)
    whole = model.encode([Item(text="a red circle", images=tuple(ImageSource(pil=page) for page in pictures[:3]))])
    parts = model.encode([Item(text="a red circle"), *(image(page) for page in pictures[:3])])
    assert_same_rows(rows_of(whole), [torch.cat(rows_of(parts))], 1e-5)


@pytest.mark.parametrize("name", NATIVE)
def test_masked_prompts_leave_the_picture_and_the_query(name, model_of, fresh, folder_of, pictures):
    model, whole = fresh(name, mask_prompts=True, query_prompt="find: "), fresh(name, query_prompt="find: ")
    processor = transformers.AutoProcessor.from_pretrained(folder_of(name))
    pages = [image(picture) for picture in pictures]
    made = [processor.process_images([picture])["input_ids"][0] for picture in pictures]
    stand = [row[ids == processor.image_token_id] for row, ids in zip(rows_of(whole.encode(pages)), made, strict=True)]
    assert_same_rows(rows_of(model.encode(pages)), stand, 1e-5)
    (query,) = rows_of(model.encode([Item(text="zebra")], side="query"))
    (full,) = rows_of(whole.encode([Item(text="zebra")], side="query"))
    left_out = len(full) - len(query)
    first = 1 if name == "colmodernvbert" else 0  # [CLS] is no instruction
    assert left_out >= len(processor.tokenizer("find: ", add_special_tokens=False)["input_ids"]) - 1
    assert torch.allclose(query, torch.cat([full[:first], full[first + left_out :]]), atol=1e-5)


@pytest.mark.parametrize("name", ["colpali", "colqwen2"])
def test_pooled_documents_are_those_of_sentence_transformers(name, fresh, pictures, texts, tmp_path):
    model = shake(fresh(name, pool_factor=2.5))
    model.save_pretrained(tmp_path)
    opened = MultiVectorEncoder(str(tmp_path), device="cpu")
    pooled = rows_of(model.encode([image(picture) for picture in pictures]))
    theirs = [opened.encode_document([picture])[0] for picture in pictures]
    assert_same_rows([as_set(row) for row in pooled], [as_set(row) for row in theirs], 1e-5)
    queries = rows_of(model.encode([Item(text=text) for text in texts], side="query"))
    assert_same_rows(queries, [opened.encode_query([text])[0] for text in texts], 1e-5)
    opened.save_pretrained(str(tmp_path / "theirs"))
    again = load(tmp_path / "theirs")
    assert again.spec.pool_factor == 2.5
    assert_same_rows(rows_of(again.encode([image(picture) for picture in pictures])), pooled, 1e-6)


@pytest.mark.parametrize(
    "settings", [{"document_tokens": 5}, {"topk_tokens": 4}, {"distance_threshold": 0.2}, {"mask_prompts": True}]
)
def test_what_sentence_transformers_cannot_express_it_does_not_open(settings, fresh, pictures, tmp_path):
    model = fresh("colpali", **settings)
    model.save_pretrained(tmp_path)
    for code, error in ((False, ValueError), (True, ImportError)):
        with pytest.raises(error, match="only_vembed_can_open_this_model"):
            MultiVectorEncoder(str(tmp_path), device="cpu", trust_remote_code=code)
    pages = [image(picture) for picture in pictures]
    assert_same_rows(rows_of(load(tmp_path).encode(pages)), rows_of(model.encode(pages)), 0)


def test_reductions_are_saved_and_can_be_switched_off(fresh, model_of, pictures, tmp_path):
    fresh("colpali", document_tokens=6, topk_tokens=20, pool_factor=2).save_pretrained(tmp_path)
    pages = [image(picture) for picture in pictures]
    assert {len(row) for row in rows_of(load(tmp_path).encode(pages))} == {6}
    assert {len(row) for row in rows_of(load(tmp_path, document_tokens=0).encode(pages))} == {10}
    assert {len(row) for row in rows_of(load(tmp_path, document_tokens=0, pool_factor=1).encode(pages))} == {20}
    whole = load(tmp_path, document_tokens=0, pool_factor=1, topk_tokens=0)
    assert_same_rows(rows_of(whole.encode(pages)), rows_of(model_of("colpali").encode(pages)), 0)


def test_queries_are_never_reduced_but_texts_as_documents_are(fresh, model_of, texts):
    model = fresh("colpali", document_tokens=3)
    assert not model.spec.treats_sides_alike
    assert model_of("colpali").spec.treats_sides_alike  # its processor reads every text as a query
    items = [Item(text=text) for text in texts]
    whole = rows_of(model_of("colpali").encode(items, side="query"))
    assert_same_rows(rows_of(model.encode(items, side="query")), whole, 0)
    assert {len(row) for row in rows_of(model.encode(items, side="document"))} == {3}


@pytest.mark.parametrize("name", ["colpali", "colmodernvbert"])
def test_the_tokens_kept_are_the_nearest_to_the_one_that_stands_for_the_page(name, fresh, model_of, pictures):
    pages = [image(picture) for picture in pictures]
    kept = rows_of(fresh(name, topk_tokens=4).encode(pages))
    for few, row in zip(kept, rows_of(model_of(name).encode(pages)), strict=True):
        alike = row @ row[0 if name == "colmodernvbert" else -1]
        best = sorted(sorted(range(len(row)), key=lambda token: -alike[token])[:4])
        assert torch.allclose(few, row[best], atol=1e-6)


@pytest.mark.parametrize("settings", [{"document_tokens": 5}, {"topk_tokens": 6, "pool_factor": 2}])
@pytest.mark.parametrize("kind", ["text", "mixed"])
def test_the_loss_sees_pooled_documents_with_cached_gradients_too(kind, settings, fresh, texts, pictures):
    model, whole = fresh("colqwen2", **settings), fresh("colqwen2")
    for one in (model, whole):
        one.model.double()
    batch = batch_of(model, kind, texts, pictures)
    plainly = gradients(model, batch, None)
    assert_gradients_equal(gradients(model, batch, 2), plainly, 1e-7)  # rotary positions are float32
    other = gradients(whole, batch, None)
    name = "backbone.embedding_proj_layer.weight"
    assert (plainly[name] - other[name]).norm() > 1e-3 * other[name].norm()
    embedded = embed(model, [image(picture) for picture in pictures])
    assert embedded.vectors.shape[1] <= 5


def test_max_pixels_bounds_the_tokens_of_a_page_and_is_saved(fresh, pictures, tmp_path):
    model = fresh("colqwen2", min_pixels=16 * 16, max_pixels=16 * 32)
    pages = [image(picture) for picture in pictures]
    rows = rows_of(model.encode(pages))
    assert max(map(len, rows)) < max(map(len, rows_of(fresh("colqwen2").encode(pages))))
    model.save_pretrained(tmp_path)
    assert_same_rows(rows_of(load(tmp_path).encode(pages)), rows, 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bert", {"pool_factor": 2}, "pool_factor: a text model has no use for it; these have: late_interaction"),
        ("clip", {"document_tokens": 8}, "document_tokens: a clip model has no use for it"),
        ("colpali", {"pooling": "mean"}, "pooling 'mean': a late_interaction model keeps a vector per token"),
        ("colpali", {"projection_dim": 64}, "projection_dim 64: this checkpoint was built with 16"),
        ("colpali", {"num_query_tokens": 8}, "num_query_tokens: colpali adds its own ten tokens"),
        ("colpali", {"image_size": 64}, "image_size: colpali reads pictures at the size of its checkpoint"),
        ("colpali", {"max_pixels": 4096}, "max_pixels: colpali does not read pictures at their native resolution"),
        ("colqwen2", {"image_size": 64}, "size of its checkpoint; max_pixels limits it"),
        ("colqwen2", {"max_pixels": 300}, "max_pixels 300: this model reads pictures of at least 324 pixels"),
        ("colqwen2", {"encoder_mode": "clip"}, "encoder_mode 'clip' does not fit: this is a late_interaction model"),
    ],
)
def test_unsupported_settings_are_refused(name, settings, message, fresh):
    with pytest.raises(ModelError, match=message):
        fresh(name, **settings)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("bert", "colqwen", r"'colqwen' does not fit: this is a text encoder \(bert\); colbert fits"),
        ("qwen2_vl", "colbert", r"this is a vision-language model \(qwen2_vl\); colqwen or colqwen2 fits"),
        ("qwen3_vl", "colpali", r"this is a vision-language model \(qwen3_vl\); colqwen fits, or late_interaction"),
        ("colpali", "colqwen", r"this is a late-interaction model \(colpali\); colpali fits"),
    ],
)
def test_a_name_that_means_another_kind_of_model_is_refused(name, mode, message, folder_of):
    with pytest.raises(ModelError, match=message):
        load(folder_of(name), encoder_mode=mode)


def test_a_name_that_means_another_kind_than_a_checkpoint_is_refused(fresh, tmp_path):
    fresh("colbert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"this is a text encoder \(bert\); colbert fits"):
        load(tmp_path, encoder_mode="colqwen")
    assert load(tmp_path, encoder_mode="colbert").spec.family == "late_interaction"


def test_each_name_of_the_family_opens_a_model_that_it_means(folder_of):
    for name, mode in (("colpali", "colpali"), ("colqwen2", "colqwen"), ("colmodernvbert", "colmodernvbert")):
        assert detect(folder_of(name), ModelSettings(encoder_mode=mode)).spec.late.kind == "native"
    for name, mode in (("bert", "colbert"), ("qwen2_vl", "colqwen"), ("qwen2_vl", "colqwen2"), ("qwen3_vl", "colqwen")):
        assert detect(folder_of(name), ModelSettings(encoder_mode=mode)).spec.late.kind in ("text", "vlm")


@pytest.mark.parametrize("name", ["colpali", "colqwen2", "colmodernvbert"])
def test_a_limit_that_cuts_a_picture_is_refused(name, fresh, pictures):
    model = fresh(name, max_length=6)
    assert len(model.encode([Item(text="a red circle on a green square and much more")], side="query").vectors) == 1
    with pytest.raises(DataError, match=r"a\.jsonl:2: max_length 6: a picture alone takes \d+ tokens; set a larger"):
        model.encode([Item(images=(ImageSource(pil=pictures[0]),), origin="a.jsonl:2")])
