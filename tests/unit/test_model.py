"""The seed's example: a model is found by name and comes back as a BaseEmbeddingModel."""

import pytest

from vembed.errors import ModelError
from vembed.model.base import BaseEmbeddingModel
from vembed.model.registry import ModelRegistry


def test_load_model(clip_folder):
    model = ModelRegistry.get(clip_folder)
    assert isinstance(model, BaseEmbeddingModel)
    assert model.spec.family == "clip"


def test_an_unknown_model_is_refused_in_plain_words(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        ModelRegistry.get(str(tmp_path / "nowhere"))
