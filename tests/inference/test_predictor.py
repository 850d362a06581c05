"""Predictor: a checkpoint's folder in, vectors out, equal to those in training."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import vembed
from tests.pictures import make_picture, write_picture
from vembed.errors import DataError, ModelError, UsageError
from vembed.inference import Predictor
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item

TEXTS = ["a red circle", "zebra", "either/or.png"]


@pytest.fixture(scope="module")
def trained(clip_folder, tmp_path_factory):
    """A CLIP whose weights were moved, in training mode, and its checkpoint."""
    settings = ModelSettings(model_name=clip_folder, query_prompt="what is ", image_size=48)
    model = VisualRetrievalModel.from_pretrained(None, settings)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder = tmp_path_factory.mktemp("final")
    model.save_pretrained(folder)
    return model, Predictor(folder, "cpu")


def test_vectors_equal_those_in_training(trained):
    model, predictor = trained
    pictures = [make_picture(seed) for seed in range(3)]
    assert np.array_equal(predictor.encode_text(TEXTS), model.get_text_features(TEXTS).numpy())
    assert np.array_equal(predictor.encode_image(pictures), model.get_image_features(pictures).numpy())
    assert predictor.spec == model.spec
    assert predictor.dim == 16


def test_the_side_picks_the_prompt(trained):
    _, predictor = trained
    asked = predictor.encode_text("a red circle", side="query")
    assert np.allclose(asked, predictor.encode_text("what is a red circle", side="document"), atol=1e-6)
    assert not np.allclose(asked, predictor.encode_text("a red circle", side="document"), atol=1e-3)


def test_images_come_as_paths_bytes_or_pictures(trained, tmp_path):
    _, predictor = trained
    path = write_picture(tmp_path / "a.png", 3)
    picture = PIL.Image.open(path)
    vectors = predictor.encode_image([path, Path(path), Path(path).read_bytes(), picture])
    assert vectors.shape == (4, 16)
    assert np.allclose(vectors, vectors[0], atol=1e-6)
    assert np.allclose(predictor.encode_image(path), vectors[0], atol=1e-6)
    assert predictor.encode_image(path).shape == (16,)


def test_a_str_is_a_text_and_never_a_path(trained, tmp_path):
    _, predictor = trained
    path = write_picture(tmp_path / "a.png", 3)
    as_text, as_image = predictor.encode(path), predictor.encode(Path(path))
    assert np.allclose(as_text, predictor.encode_text(path, side="document"), atol=1e-6)
    assert np.allclose(as_image, predictor.encode_image(path), atol=1e-6)
    assert not np.allclose(as_text, as_image, atol=1e-2)


def test_everything_can_be_mixed_in_one_call(trained, tmp_path):
    model, predictor = trained
    path = write_picture(tmp_path / "a.png", 3)
    both = Item(text="zebra", images=(ImageSource(path=path),))
    vectors = predictor.encode(
        ["zebra", {"text": "zebra", "image": path}, both, {"image": [path]}, Path(path), make_picture(3)],
        output="torch",
    )
    assert isinstance(vectors, torch.Tensor)
    assert vectors.shape == (6, 16)
    assert torch.allclose(vectors[1], vectors[2], atol=1e-6)
    assert torch.allclose(vectors[3], vectors[4], atol=1e-6)
    assert torch.allclose(vectors[1], model.encode([both]).vectors[0], atol=1e-6)


def test_a_narrower_width_is_normalised_again(trained):
    _, predictor = trained
    whole, short = predictor.encode_text(TEXTS), predictor.encode_text(TEXTS, width=4)
    assert np.allclose(short, whole[:, :4] / np.linalg.norm(whole[:, :4], axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ModelError, match="width 17"):
        predictor.encode_text(TEXTS, width=17)


def test_scores_are_cosines(trained):
    _, predictor = trained
    queries, documents = predictor.encode_text(TEXTS), predictor.encode_text(TEXTS[:2], output="torch")
    scores = predictor.score(queries, documents)
    assert scores.shape == (3, 2)
    assert np.allclose(scores, queries @ documents.numpy().T, atol=1e-6)
    assert predictor.score(queries[0], documents).shape == (1, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_gives_float32(trained, dtype):
    _, predictor = trained
    half = Predictor(predictor.model.base.model_name, "cpu", dtype=dtype)
    for ours, whole in (
        (half.encode_text(TEXTS), predictor.encode_text(TEXTS)),
        (half.encode_image(make_picture(1)), predictor.encode_image(make_picture(1))),
    ):
        assert ours.dtype == np.float32
        assert (ours * whole).sum(-1).min() > 0.999
        assert np.allclose(np.linalg.norm(ours, axis=-1), 1, atol=1e-5)


def test_what_cannot_be_embedded_is_refused(trained):
    _, predictor = trained
    with pytest.raises(DataError, match="not int"):
        predictor.encode([3])
    with pytest.raises(DataError, match="'picture'"):
        predictor.encode({"picture": "a.png"})
    with pytest.raises(DataError, match="text is a str, not float"):
        predictor.encode({"text": 1.5})
    with pytest.raises(DataError, match="needs a text, an image, or both"):
        predictor.encode({})
    with pytest.raises(DataError, match=r"nowhere\.png"):
        predictor.encode_image("nowhere.png")
    with pytest.raises(UsageError, match="output 'list' is unknown"):
        predictor.encode("a", output="list")
    with pytest.raises(UsageError, match="dtype 'int8' is unknown"):
        Predictor(predictor.model.base.model_name, "cpu", dtype="int8")
    with pytest.raises(UsageError, match="device 'gpu' is unknown; known are: auto, cpu, cuda, mps"):
        Predictor(predictor.model.base.model_name, "gpu")
    with pytest.raises(DataError, match="a text is a str, not int"):
        predictor.encode_text([3])


@pytest.mark.parametrize(
    ("method", "kind"),
    [("encode", "an item is a text, an image"), ("encode_text", "a text is a str"), ("encode_image", "an image is a")],
)
@pytest.mark.parametrize("thing", [None, 3])
def test_what_is_neither_an_item_nor_a_list_is_refused(thing, method, kind, trained):
    with pytest.raises(UsageError, match=f"{kind}.* not {type(thing).__name__}"):
        getattr(trained[1], method)(thing)


def test_an_empty_text_is_refused_as_in_training(trained):
    _, predictor = trained
    with pytest.raises(DataError, match=r"item 1: the text is empty \(so are 2 of 3\)"):
        predictor.encode_text(["a", "", " \n"])
    for thing in ("", {"text": "  ", "image": make_picture(1)}, Item(text="")):
        with pytest.raises(DataError, match="item 0: the text is empty"):
            predictor.encode(thing)
    with pytest.raises(DataError, match=r"a\.jsonl:3: the text is empty"):
        predictor.encode([Item(text="", origin="a.jsonl:3")])


def test_weights_stay_in_the_dtype_that_the_settings_name(trained):
    folder = trained[1].model.base.model_name
    low = Predictor(folder, "cpu", settings=ModelSettings(torch_dtype="bfloat16"))
    towers = {p.dtype for tower in low.model.model.towers().values() for p in tower.parameters()}
    assert towers == {torch.bfloat16}
    assert (low.encode_text(TEXTS) * trained[1].encode_text(TEXTS)).sum(-1).min() > 0.999
    with pytest.raises(UsageError, match=r"dtype .float16. and settings\.torch_dtype .bfloat16.: give one"):
        Predictor(folder, "cpu", dtype="float16", settings=ModelSettings(torch_dtype="bfloat16"))


def test_a_device_that_the_machine_lacks_is_refused(trained):
    lacking = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cuda:99": False}
    missing = [name for name, available in lacking.items() if not available]
    assert missing
    for name in missing:
        with pytest.raises(UsageError, match=f"device '{name}' is not available"):
            Predictor(trained[1].model.base.model_name, name)


def test_lists_may_be_empty(trained):
    _, predictor = trained
    assert predictor.encode_text([]).shape == (0, 16)
    assert predictor.encode_text([], width=4).shape == (0, 4)


def test_predictor_is_the_package_s_own_name(trained):
    assert vembed.Predictor is Predictor
    assert vembed.VisualRetrievalModel is VisualRetrievalModel
