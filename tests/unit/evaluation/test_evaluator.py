"""Measuring real tiny models: figures do not depend on batching, nothing is encoded twice, protocols are fair."""

import numpy as np
import pytest
import torch

from tests.pictures import write_jsonl, write_pairs, write_picture
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataEntry, DataSettings
from vembed.errors import DataError, ModelError
from vembed.evaluation.evaluator import Evaluator, measure_set
from vembed.evaluation.protocols import base_protocols
from vembed.evaluation.relevance import retrieval_set
from vembed.evaluation.settings import EvaluationSettings
from vembed.evaluation.truncation import count_truncated
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.retrieval.index import Budget
from vembed.scoring import cosine, maxsim
from vembed.types import Embeddings


@pytest.fixture(scope="module")
def clip(clip_folder):
    return VisualRetrievalModel.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def composed(bert_folder, vit_folder):
    return VisualRetrievalModel.from_pretrained(
        None, ModelSettings(text_model_name=bert_folder, image_model_name=vit_folder, projection_dim=16)
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All four modes; texts of very different lengths, several positives, groups, an image that is also a query."""
    folder = tmp_path_factory.mktemp("sets")
    texts = ["a" * (1 + number) + " red circle" * (number % 4) for number in range(14)]
    pictures = [write_picture(folder / f"{number}.png", number) for number in range(14)]
    other = [write_picture(folder / f"other{number}.png", 50 + number) for number in range(14)]
    names = [f"the name {number}" for number in range(14)]
    columns = {
        "t2i": [[text, [one, two]] for text, one, two in zip(texts, pictures, other, strict=True)],
        "i2t": list(zip(pictures, names, strict=True)),
        "i2i": list(zip(pictures, pictures[1:] + pictures[:1], strict=True)),
        "t2t": list(zip(texts, names, strict=True)),
    }
    entries = []
    for mode, pairs in columns.items():
        rows = [{"query": q, "positive": p, "group": number // 2} for number, (q, p) in enumerate(pairs)]
        entries.append(DataEntry(path=write_jsonl(folder / f"{mode}.jsonl", rows), retrieval_mode=mode))
    settings = DataSettings()
    return [retrieval_set(dataset, settings) for dataset in load_datasets(tuple(entries), settings)]


def evaluator(sets, batch_size=64, **settings):
    return Evaluator(sets, EvaluationSettings(eval_batch_size=batch_size, **settings))


def test_every_set_gets_every_metric(sets, clip):
    metrics = evaluator(sets, eval_k=(1, 3)).measure(clip).metrics
    assert list(metrics) == ["t2i", "i2t", "i2i", "t2t"]
    names = {f"{name}@{k}" for name in ("recall", "hit_rate", "ndcg") for k in (1, 3)} | {"mrr", "map"}
    for figures in metrics.values():
        assert set(figures) == names
        assert all(0 <= value <= 1 for value in figures.values())


@pytest.mark.parametrize("model_name", ["clip", "composed"])
def test_figures_do_not_move_with_batch_size_or_padding(sets, request, model_name):
    model = request.getfixturevalue(model_name)
    whole = evaluator(sets, 64).measure(model, base_protocols)
    for batch_size in (1, 3, 5):
        again = evaluator(sets, batch_size).measure(model, base_protocols)
        assert again.metrics == whole.metrics
        for one, other in zip(again.sets, whole.sets, strict=True):
            np.testing.assert_array_equal(one.first_ranks, other.first_ranks)


def test_figures_equal_a_plain_loop_over_encoded_items(sets, clip):
    one = sets[2]
    queries = torch.cat([clip.encode([item], side="query").vectors for item in one.queries])
    documents = torch.cat([clip.encode([item], side="document").vectors for item in one.documents])
    scores = queries @ documents.T
    starts = (one.relevant.counts.cumsum(0) - one.relevant.counts).tolist()
    reciprocal = []

    def path(item):
        return item.images[0].path

    for number, item in enumerate(one.queries):
        relevant = one.relevant.values[starts[number] : starts[number] + int(one.relevant.counts[number])].tolist()
        order = [d for d in scores[number].argsort(descending=True).tolist() if path(one.documents[d]) != path(item)]
        reciprocal.append(1 / (1 + min(order.index(document) for document in relevant)))
    assert evaluator([one]).measure(clip).metrics["i2i"]["mrr"] == pytest.approx(np.mean(reciprocal), rel=1e-9)


def test_a_query_never_finds_itself(sets, clip):
    """Without exclusion each picture, which stands in the gallery too, would be its own best match."""
    one = sets[2]
    result = evaluator([one]).measure(clip).sets[0]
    assert one.excluded.counts.tolist() == [1] * len(one.queries)
    assert not (result.hits.documents == one.excluded.values[:, None]).any()


class CountingModel(VisualRetrievalModel):
    """A real model that notes what it was asked to encode."""

    def __init__(self, model):
        super().__init__(model.model, model.processor, model.base)
        self.asked = []

    def encode(self, items, **options):
        self.asked += [(item.text, item.images, options["features"]) for item in items]
        return super().encode(items, **options)


def test_an_item_of_several_sets_is_encoded_once(sets, clip):
    counting = CountingModel(clip)
    evaluator(sets).measure(counting)
    distinct = {int(key) for one in sets for key in (*one.query_keys, *one.document_keys)}
    assert len(counting.asked) == len(distinct) == 14 * 4


def test_sides_with_prompts_of_their_own_are_encoded_apart(sets, clip_folder):
    model = CountingModel(
        VisualRetrievalModel.from_pretrained(clip_folder, ModelSettings(query_prompt="find: ", document_prompt=""))
    )
    evaluator([sets[2]]).measure(model)
    assert len(model.asked) == 28


def test_the_base_of_new_heads_is_the_towers_own_where_one_tower_will_do(sets, composed):
    result = evaluator(sets).measure(composed, base_protocols)
    words = {one.name: one.measured_on for one in result.sets}
    assert words == {
        "t2i": "untrained projection heads, so about chance",
        "i2t": "untrained projection heads, so about chance",
        "i2i": "the pretrained image tower's own features",
        "t2t": "the pretrained text tower's own features",
    }
    for one, measured in zip(sets, result.sets, strict=True):
        if one.mode in ("t2t", "i2i"):
            queries = composed.encode(one.queries, side="query", features="tower")
            documents = composed.encode(one.documents, side="document", features="tower")
            plain = measure_set(one, queries, documents, scorer=cosine, cut_offs=(1, 5, 10), num_hits=5)
            assert plain.metrics == measured.metrics
    through_heads = evaluator(sets).measure(composed)
    assert through_heads.metrics["i2i"] != result.metrics["i2i"]
    assert through_heads.metrics["t2i"] == result.metrics["t2i"]


def test_towers_own_features_are_compared_by_direction(sets, bert_folder, vit_folder):
    """They have lengths of their own, which no training has made comparable."""
    settings = ModelSettings(text_model_name=bert_folder, image_model_name=vit_folder, projection_dim=16)
    model = VisualRetrievalModel.from_pretrained(None, settings)
    expected = evaluator(sets[2:]).measure(model, base_protocols).metrics
    model.model.spec = model.spec.model_copy(update={"similarity": "dot", "normalize": False})
    lengths = model.encode(sets[3].documents, features="tower").vectors.norm(dim=1)
    assert lengths.max() > 1.02 * lengths.min()
    assert evaluator(sets[2:]).measure(model, base_protocols).metrics == expected


def test_a_model_without_new_heads_is_its_own_base(sets, clip):
    base = evaluator(sets).measure(clip, base_protocols)
    assert base.metrics == evaluator(sets).measure(clip).metrics
    assert {one.measured_on for one in base.sets} == {"the pretrained model's embeddings"}


def test_a_collapsed_model_scores_nothing(sets, clip_folder):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.model.embed_text = lambda input_ids, mask: torch.ones(len(input_ids), 16)
        model.model.embed_images = lambda images: torch.ones(len(images["pixel_values"]), 16)
    for figures in evaluator(sets, eval_k=(1, 5)).measure(model).metrics.values():
        assert figures["recall@5"] == figures["hit_rate@5"] == figures["ndcg@5"] == 0
        assert figures["mrr"] < 0.1


def test_embeddings_that_are_not_numbers_are_refused(sets, clip_folder):
    model = VisualRetrievalModel.from_pretrained(clip_folder)
    with torch.no_grad():
        next(iter(model.model.backbones().values())).visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite numbers for 14 of 14 items"):
        evaluator([sets[2]]).measure(model)


def test_measuring_leaves_training_mode_and_generators_as_they_were(sets, clip):
    clip.model.train()
    state = torch.get_rng_state()
    evaluator(sets).measure(clip)
    assert clip.model.training
    assert torch.equal(torch.get_rng_state(), state)
    clip.model.eval()


def test_a_mode_that_the_model_cannot_take_is_refused(sets, bert_folder):
    with pytest.raises(ModelError, match="i2i"):
        evaluator([sets[2]]).measure(VisualRetrievalModel.from_pretrained(bert_folder))


def test_a_broken_picture_names_its_row(tmp_path, clip):
    path = write_pairs(tmp_path, 4, "t2i")
    (tmp_path / "positive_2.png").write_bytes(b"no picture")
    (dataset,) = load_datasets(path, DataSettings())
    with pytest.raises(DataError, match=r"pairs.jsonl:3.*not an image"):
        evaluator([retrieval_set(dataset, DataSettings())]).measure(clip)


def test_hits_are_the_documents_that_search_finds(sets, clip):
    one = sets[0]
    result = Evaluator([one], EvaluationSettings(), num_hits=3).measure(clip).sets[0]
    queries = clip.encode(one.queries, side="query")
    documents = clip.encode(one.documents, side="document")
    expected = cosine(queries, documents).argsort(dim=1, descending=True)[:, :3]
    assert torch.equal(result.hits.documents, expected)


def test_long_texts_are_counted(tmp_path, clip):
    rows = [
        {"query": "short", "positive": "also short"},
        {"query": "much too long a text " * 20, "positive": "a red circle " * 30},
        {"query": "another", "positive": "a red circle " * 30},
    ]
    settings = DataSettings(retrieval_mode="t2t")
    (dataset,) = load_datasets(write_jsonl(tmp_path / "rows.jsonl", rows), settings)
    assert count_truncated(clip, retrieval_set(dataset, settings)) == 2


def test_a_long_text_beside_two_pictures_is_counted_once(tmp_path, clip):
    pictures = [write_picture(tmp_path / f"{number}.png", number) for number in range(2)]
    rows = [{"query": {"text": "word " * 60, "image": path}, "positive": f"name {path[-5]}"} for path in pictures]
    settings = DataSettings(retrieval_mode="m2t")
    (dataset,) = load_datasets(write_jsonl(tmp_path / "rows.jsonl", rows), settings)
    assert count_truncated(clip, retrieval_set(dataset, settings)) == 1


def test_the_mean_over_sets_counts_every_set_alike(sets, clip):
    result = evaluator(sets).measure(clip)
    assert result.mean("mrr") == pytest.approx(np.mean([one["mrr"] for one in result.metrics.values()]))


def test_results_do_not_depend_on_strips(sets, clip, monkeypatch):
    whole = evaluator(sets).measure(clip)
    monkeypatch.setattr("vembed.retrieval.index.Budget.__init__.__defaults__", (30, 64))
    assert Budget() == Budget(scores=30, products=64)
    strips = evaluator(sets).measure(clip)
    for one, other in zip(strips.sets, whole.sets, strict=True):
        assert one.metrics == other.metrics
        assert torch.equal(one.hits.documents, other.hits.documents)


def test_multi_vector_embeddings_are_measured_by_their_scorer(sets):
    """The same path serves late interaction: a query token finds the document that holds it."""
    one = sets[3]
    generator = torch.Generator().manual_seed(0)
    documents = torch.nn.functional.normalize(torch.randn(len(one.documents), 5, 8, generator=generator), dim=-1)
    starts = (one.relevant.counts.cumsum(0) - one.relevant.counts).tolist()
    queries = torch.stack([documents[int(one.relevant.values[start]), :2] for start in starts])
    mask = torch.ones(len(one.documents), 5, dtype=torch.bool)
    result = measure_set(
        one, Embeddings(queries), Embeddings(documents, mask), scorer=maxsim, cut_offs=(1,), num_hits=2
    )
    assert result.metrics["hit_rate@1"] == 1
