"""Models with a vector per token, from training to serving."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.pictures import make_picture, write_pairs
from vembed import Predictor, Trainer
from vembed.entrypoints.evaluate import evaluate
from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import pad_token_rows, token_rows
from vembed.model.settings import ModelSettings
from vembed.scoring import maxsim

TEXTS = ["a red circle", "zebra", "two blue squares on a green field"]
PICTURES = [make_picture(seed, size) for seed, size in enumerate([(40, 30), (17, 90), (100, 33), (32, 32)])]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(tiny.tiny_colqwen2(tmp_path_factory.mktemp("colqwen2")), "cpu", batch_size=2)


def test_a_predictor_gives_one_array_per_item(predictor):
    queries, pages = predictor.encode_text(TEXTS), predictor.encode_image(PICTURES)
    assert len({len(page) for page in pages}) > 1
    assert all(isinstance(row, np.ndarray) and row.shape[1] == predictor.dim == 16 for row in [*queries, *pages])
    assert all(np.allclose(np.linalg.norm(row, axis=1), 1, atol=1e-5) for row in [*queries, *pages])
    np.testing.assert_allclose(predictor.encode_text(TEXTS[1]), queries[1], atol=1e-5)
    tensors = predictor.encode_image(PICTURES, output="torch")
    assert all(torch.equal(tensor, torch.from_numpy(page)) for tensor, page in zip(tensors, pages, strict=True))
    narrow = predictor.encode_image(PICTURES, width=4)
    assert narrow[0].shape == (len(pages[0]), 4)
    np.testing.assert_allclose(np.linalg.norm(narrow[0], axis=1), 1, atol=1e-5)


def test_scores_are_the_sums_of_the_best_products(predictor):
    queries, pages = predictor.encode_text(TEXTS), predictor.encode_image(PICTURES)
    expected = [[(query @ page.T).max(axis=1).sum() for page in pages] for query in queries]
    np.testing.assert_allclose(predictor.score(queries, pages), expected, atol=1e-4)
    np.testing.assert_allclose(predictor.score(queries[0], pages), expected[:1], atol=1e-4)
    torches = [torch.from_numpy(page) for page in pages]
    np.testing.assert_allclose(predictor.score(queries, torches), expected, atol=1e-4)


def test_documents_can_be_pooled_further_when_a_checkpoint_is_opened(predictor, tmp_path):
    predictor.model.save_pretrained(tmp_path)
    pooled = Predictor(tmp_path, "cpu", settings=ModelSettings(pool_factor=3)).encode_image(PICTURES)
    pages = predictor.encode_image(PICTURES)
    assert [len(row) for row in pooled] == [len(page) // 3 for page in pages]


def test_features_of_one_vector_are_refused(predictor):
    with pytest.raises(ModelError, match="a late_interaction model has a vector per token"):
        predictor.model.get_text_features(TEXTS)
    with pytest.raises(ModelError, match="`encode` gives them"):
        predictor.model.get_image_features(PICTURES)


def ranks_of(scores, lead):
    """Ranks of the documents on the diagonal; another stands ahead when it scores more than `lead` above."""
    ahead = scores > scores.diagonal()[:, None] + lead
    np.fill_diagonal(ahead, False)
    return ahead.sum(axis=1) + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["colqwen2", "colbert"])
def test_a_run_trains_evaluates_and_serves_the_same_vectors(kind, tmp_path):
    colbert = kind == "colbert"
    model = tiny.tiny_bert(tmp_path / "model") if colbert else tiny.tiny_colqwen2(tmp_path / "model")
    mode = "t2t" if colbert else "t2i"
    own = {"encoder_mode": "colbert", "projection_dim": 16, "num_query_tokens": 16} if colbert else {"use_lora": True}
    test = write_pairs(tmp_path / "test", 9, mode, seed=500)
    settings = {
        "model_name": model,
        "preset": "colpali",
        "data_path": write_pairs(tmp_path / "train", 16, mode),
        "test_data_path": test,
        "val_fraction": 0.2,
        "retrieval_mode": mode,
        "document_tokens": 6,
        "batch_size": 8,
        "gradient_cache_chunk_size": 3,
        "epochs": 2,
        "bootstrap_samples": 20,
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
        **own,
    }
    run = Trainer(settings).train().output_dir
    record = json.loads((run / "report" / "metrics.json").read_text())
    predictor = Predictor(run / "final", "cpu")
    assert predictor.spec.document_tokens == 6
    rows = [json.loads(line) for line in Path(test).read_text(encoding="utf-8").splitlines()]
    queries = predictor.encode_text([row["query"] for row in rows])
    documents = [row["positive"] for row in rows]
    if colbert:
        pages = predictor.encode_text(documents, side="document")
    else:
        pages = predictor.encode_image([Path(test).parent / name for name in documents])
    assert {len(page) for page in pages} == {6}
    scores = predictor.score(queries, pages)
    tensors = [pad_token_rows([torch.from_numpy(row) for row in rows]) for rows in (queries, pages)]
    np.testing.assert_allclose(scores, maxsim(*tensors), atol=1e-4)
    (figures,) = record["tuned"].values()
    # Documents that score alike to within rounding may stand in either order.
    worst, best = ranks_of(scores, -1e-4), ranks_of(scores, 1e-4)
    assert (1 / worst).mean() - 1e-6 <= figures["mrr"] <= (1 / best).mean() + 1e-6
    assert (worst <= 5).mean() - 1e-6 <= figures["recall@5"] <= (best <= 5).mean() + 1e-6
    assert evaluate(run).text()


def test_padding_and_cutting_rows_are_inverse():
    rows = [torch.randn(tokens, 3) for tokens in (2, 5, 1)]
    padded = pad_token_rows(rows)
    assert padded.vectors.shape == (3, 5, 3)
    assert all(torch.equal(row, again) for row, again in zip(rows, token_rows(padded), strict=True))
