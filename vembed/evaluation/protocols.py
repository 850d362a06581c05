"""On which vectors, and on which part of a query, a set is measured: the tuned model as it is, the base at its best.

A query of picture and text can be answered by the picture alone, the text alone or their sum, and a model that was not
tuned for it finds the query's own picture first. So the base of such a set is the best of all of these, with the
query's picture in the gallery and without it; every one of them is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from vembed.evaluation.relevance import RetrievalSet
from vembed.evaluation.settings import EvaluationSettings
from vembed.model.encoding import Features
from vembed.model.modeling import VisualRetrievalModel
from vembed.types import Item

QueryPart = Literal["whole", "text", "image"]

_BOTH = "m"
_LETTER: dict[QueryPart, str] = {"text": "t", "image": "i"}
_PART_WORDS: dict[QueryPart, str] = {"whole": "text + image", "image": "image only", "text": "text only"}


@dataclass(frozen=True)
class Basis:
    """Which vectors figures are of, for the encoder and in words; of which part of a query; and in which gallery.

    without_query_image: the query's own picture is taken out of the gallery.
    """

    features: Features
    words: str
    part: QueryPart = "whole"
    without_query_image: bool = False

    def query(self, item: Item) -> Item:
        """The part of a query that is encoded."""
        if self.part == "whole":
            return item
        return replace(item, images=()) if self.part == "text" else replace(item, text=None)


PLAIN = Basis("model", "the model's embeddings")


@dataclass(frozen=True)
class Bases:
    """What is measured of a set: the best of `candidates` gives its figures, `beside` is shown with them."""

    candidates: tuple[Basis, ...]
    beside: tuple[Basis, ...] = ()


Rule = Callable[[VisualRetrievalModel, RetrievalSet, EvaluationSettings], Bases]


def as_it_is(model: VisualRetrievalModel, retrieval_set: RetrievalSet, settings: EvaluationSettings) -> Bases:
    """Every set is measured on what the model gives; beside it, what composed queries find in the other gallery."""
    chosen = replace(PLAIN, without_query_image=settings.exclude_query_image)
    if not retrieval_set.holds_query_images or retrieval_set.mode[0] != _BOTH:
        return Bases((chosen,))
    return Bases((chosen,), (replace(chosen, without_query_image=not settings.exclude_query_image),))


def as_base(model: VisualRetrievalModel, retrieval_set: RetrievalSet, settings: EvaluationSettings) -> Bases:
    """The fair figure of an untuned model: new heads are random, so where one tower will do, its own features count.

    Of a query with text and image each part by itself is tried as well, with and without its picture in the gallery.
    """
    letter, document = retrieval_set.mode[0], retrieval_set.mode[2]
    if letter != _BOTH:
        features, words = _vectors(model, letter, document)
        return Bases((Basis(features, words, without_query_image=settings.exclude_query_image),))
    galleries = (False, True) if retrieval_set.holds_query_images else (settings.exclude_query_image,)
    parts: tuple[QueryPart, ...] = ("image", "text", "whole")
    return Bases(
        tuple(
            Basis(*_vectors(model, _LETTER.get(part, _BOTH), document), part, without)
            for without in galleries
            for part in parts
        )
    )


def part_words(basis: Basis) -> str:
    """The part of a query in words.

    >>> part_words(replace(PLAIN, part="image"))
    'image only'
    """
    return _PART_WORDS[basis.part]


def _vectors(model: VisualRetrievalModel, query: str, document: str) -> tuple[Features, str]:
    """What an untuned model compares a query of that kind (t, i, m) with a document by."""
    if not model.model.has_new_heads:
        return "model", "the pretrained model's embeddings"
    if query == document and query != _BOTH:
        tower = "image" if query == "i" else "text"
        return "tower", f"the pretrained {tower} tower's own features"
    return "model", "untrained projection heads" + ("" if _BOTH in (query, document) else ", so about chance")
