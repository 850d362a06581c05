"""Texts and pictures of many shapes, and one loaded model of each family."""

import copy

import pytest

from tests.cases import CASES
from tests.pictures import make_picture
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.types import ImageSource, Item

TEXTS = [
    "a red circle",
    "zebra",
    "two blue squares on a green field",
    "either/or.png",
    "what colour is the small yellow triangle beside a large picture? " * 3,
    "ünïcode 🎉",
]
SIZES = [(40, 30), (32, 32), (17, 90), (64, 64), (5, 7), (100, 33)]


@pytest.fixture(scope="session")
def texts():
    return list(TEXTS)


@pytest.fixture(scope="session")
def pictures():
    return [make_picture(seed, size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Builds the folder of a tiny model once, by the name of its case."""
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            make = CASES[name].make
            assert make is not None, f"{name} is composed of {CASES[name].towers}"
            made[name] = make(str(tmp_path_factory.mktemp(name)))
        return made[name]

    return folder


@pytest.fixture(scope="session")
def fresh(folder_of):
    """Loads a tiny model with settings over those of its case; without any, copies what it once loaded."""
    plain: dict[str, VisualRetrievalModel] = {}

    def load(name: str, *, temperature: float | None = None, seed: int = 0, **settings: object) -> VisualRetrievalModel:
        case = CASES[name]
        settings = {**case.settings, **settings}
        if case.towers is not None:
            settings |= dict(zip(("text_model_name", "image_model_name"), map(folder_of, case.towers), strict=True))
        else:
            settings["model_name"] = folder_of(name)
        return VisualRetrievalModel.from_pretrained(None, ModelSettings(**settings), temperature=temperature, seed=seed)

    def make(name: str, **options: object) -> VisualRetrievalModel:
        if options:
            return load(name, **options)
        if name not in plain:
            plain[name] = load(name)
        return copy.deepcopy(plain[name])

    return make


@pytest.fixture(scope="session")
def model_of(fresh):
    """Loads a tiny model once; tests must not change it."""
    loaded: dict[str, VisualRetrievalModel] = {}

    def model(name: str) -> VisualRetrievalModel:
        if name not in loaded:
            loaded[name] = fresh(name)
        return loaded[name]

    return model


@pytest.fixture(scope="session")
def items_for(texts, pictures):
    """Items that a model can read: texts, images, several images, and unless `mixed` is off both at once."""

    def items(model: VisualRetrievalModel, mixed: bool = True) -> list[Item]:
        sources = [ImageSource(pil=image) for image in pictures]
        made = [Item(text=text) for text in texts] if model.spec.supports(["text"]) else []
        if model.spec.supports(["image"]):
            made += [Item(images=(source,)) for source in sources]
            made += [Item(images=(sources[0], sources[3], sources[4]))]
        if model.spec.supports(["text", "image"]) and mixed:
            made += [Item(text=text, images=(source,)) for text, source in zip(texts, sources, strict=True)]
            made += [Item(text=texts[2], images=tuple(sources[1:3]))]
        return made

    return items
