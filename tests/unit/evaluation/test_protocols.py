"""The honest base of queries of text and image: each part by itself, their sum, and the query's picture in and out."""

from dataclasses import replace

import pytest
import torch

from tests.pictures import write_jsonl, write_picture
from vembed.data.dataset import load_datasets
from vembed.data.settings import DataEntry, DataSettings
from vembed.evaluation.evaluator import Evaluator, measure_set
from vembed.evaluation.protocols import base_protocols
from vembed.evaluation.relevance import retrieval_set
from vembed.evaluation.settings import EvaluationSettings
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.scoring import cosine


@pytest.fixture(scope="module")
def composed(bert_folder, vit_folder):
    return VisualRetrievalModel.from_pretrained(
        None, ModelSettings(text_model_name=bert_folder, image_model_name=vit_folder, projection_dim=16)
    )


@pytest.fixture(scope="module")
def clip(clip_folder):
    return VisualRetrievalModel.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Six pictures that become others by two texts: to pictures, among them the query's own, and to names."""
    folder = tmp_path_factory.mktemp("composed")
    names = [f"the {size} {colour} shape" for size in ("big", "small", "tiny") for colour in ("red", "blue")]
    pictures, rows = [write_picture(folder / f"{number}.png", number) for number in range(18)], {"m2i": [], "m2t": []}
    for base in range(6):
        for way, text in enumerate(("make it big", "two of them")):
            query = {"text": text, "image": pictures[base]}
            target, other = 6 + 2 * base + way, 7 + 2 * base - way
            rows["m2i"].append(
                {"query": query, "positive": pictures[target], "negatives": [pictures[base], pictures[other]]}
            )
            rows["m2t"].append({"query": query, "positive": f"{names[base]}, {text}", "negatives": [names[base]]})
    entries = [
        DataEntry(path=write_jsonl(folder / f"{mode}.jsonl", one), retrieval_mode=mode) for mode, one in rows.items()
    ]
    settings = DataSettings()
    return [retrieval_set(dataset, settings) for dataset in load_datasets(tuple(entries), settings)]


def measure(sets, model, *rule, **settings):
    return Evaluator(sets, EvaluationSettings(**settings)).measure(model, *rule).sets


def rows_of(result):
    return [
        (row.protocol.part, row.protocol.without_query_image, row.protocol.description)
        for row in result.protocol_results
    ]


def test_the_base_of_new_heads_is_measured_in_every_way(sets, composed):
    to_pictures, to_names = measure(sets, composed, base_protocols)
    tower, heads = "the pretrained {} tower's own features", "untrained projection heads"
    ways = [("image", tower.format("image")), ("text", heads + ", so about chance"), ("whole", heads)]
    assert rows_of(to_pictures) == [(part, out, words) for out in (False, True) for part, words in ways]
    ways = [("image", heads + ", so about chance"), ("text", tower.format("text")), ("whole", heads)]
    assert rows_of(to_names) == [(part, False, words) for part, words in ways]


def test_the_base_of_a_dual_encoder_is_measured_in_every_way(sets, clip):
    (result,) = measure(sets[:1], clip, base_protocols)
    words = "the pretrained model's embeddings"
    assert rows_of(result) == [(part, out, words) for out in (False, True) for part in ("image", "text", "whole")]


def test_the_figures_of_a_base_are_those_of_its_best_row(sets, clip):
    for metric in ("ndcg@10", "recall@1", "mrr"):
        for result in measure(sets, clip, base_protocols, best_metric=metric):
            assert result.metrics[metric] == max(row.metrics[metric] for row in result.protocol_results)
            assert result.metrics == result.chosen.metrics
            assert len({row.metrics["mrr"] for row in result.protocol_results}) > 2


@pytest.mark.parametrize("number", range(6))
def test_a_row_is_what_its_part_of_the_query_finds(sets, clip, number):
    one = sets[0]
    row = measure([one], clip, base_protocols)[0].protocol_results[number]
    items = [replace(item, images=()) for item in one.queries]
    if row.protocol.part == "image":
        items = [replace(item, text=None) for item in one.queries]
    if row.protocol.part == "whole":
        items = one.queries
    queries, documents = clip.encode(items, side="query"), clip.encode(one.documents, side="document")
    gallery = one.without_query_images() if row.protocol.without_query_image else one
    plain = measure_set(gallery, queries, documents, scorer=cosine, cut_offs=(1, 5, 10), num_hits=5)
    assert row.metrics == plain.metrics


def test_the_picture_alone_finds_itself_unless_it_is_out_of_the_gallery(sets, clip):
    with_it, _, _, without, _, _ = measure(sets[:1], clip, base_protocols)[0].protocol_results
    assert with_it.metrics["recall@1"] == 0
    assert without.metrics["mrr"] > with_it.metrics["mrr"]
    assert (with_it.gallery, without.gallery) == ("with the query's picture", "without the query's picture")


@pytest.mark.parametrize("out", [False, True])
def test_a_tuned_model_counts_in_the_gallery_that_is_asked_for_and_shows_the_other(sets, clip, out):
    to_pictures, to_names = measure(sets, clip, exclude_query_image=out)
    assert [row.protocol.without_query_image for row in to_pictures.protocol_results] == [out, not out]
    assert to_pictures.metrics == to_pictures.protocol_results[0].metrics != to_pictures.protocol_results[1].metrics
    assert len(to_names.protocol_results) == 1
    own = sets[0].query_images.values[:, None]
    assert bool((to_pictures.hits.documents == own).any()) is not out


def test_queries_of_one_kind_are_measured_in_one_way(tmp_path, clip):
    rows = [
        {"query": write_picture(tmp_path / f"{n}.png", n), "positive": {"text": "it", "image": f"{n}.png"}}
        for n in range(3)
    ]
    settings = DataSettings(retrieval_mode="i2m")
    (dataset,) = load_datasets(write_jsonl(tmp_path / "rows.jsonl", rows), settings)
    (result,) = measure([retrieval_set(dataset, settings)], clip, base_protocols)
    assert len(result.protocol_results) == 1
    assert result.protocol_results[0].protocol.part == "whole"


def test_measuring_parts_leaves_the_queries_whole(sets, clip):
    measure(sets, clip, base_protocols)
    assert all(item.text is not None and item.images for item in sets[0].queries)
    assert torch.equal(sets[0].excluded.counts, torch.zeros(12, dtype=torch.int64))
