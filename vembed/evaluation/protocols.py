"""Evaluation protocols: which vectors of a model, which part of a query and which gallery its figures are of.

A tuned model is measured as it is, the base at its best. A query of picture and text can be answered by the picture
alone, the text alone or their sum, and a model that was not tuned for it finds the query's own picture first. So the
base of such a set is the best of all of these, with the query's picture in the gallery and without it; every one of
them is shown.
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
_PART_LABELS: dict[QueryPart, str] = {"whole": "text + image", "image": "image only", "text": "text only"}


@dataclass(frozen=True)
class EvaluationProtocol:
    """One way to measure a set: the vectors compared (`description`: in words), the query's part, and the gallery.

    without_query_image: the query's own picture is taken out of the gallery.
    """

    features: Features
    description: str
    part: QueryPart = "whole"
    without_query_image: bool = False

    def query(self, item: Item) -> Item:
        """The part of a query that is encoded."""
        if self.part == "whole":
            return item
        return replace(item, images=()) if self.part == "text" else replace(item, text=None)


MODEL_EMBEDDINGS = EvaluationProtocol("model", "the model's embeddings")


@dataclass(frozen=True)
class ProtocolChoice:
    """The protocols of one set: the best of `candidates` gives its figures, `also_shown` are reported with them."""

    candidates: tuple[EvaluationProtocol, ...]
    also_shown: tuple[EvaluationProtocol, ...] = ()


ProtocolRule = Callable[[VisualRetrievalModel, RetrievalSet, EvaluationSettings], ProtocolChoice]


def model_protocols(
    model: VisualRetrievalModel, retrieval_set: RetrievalSet, settings: EvaluationSettings
) -> ProtocolChoice:
    """The model's own embeddings; for composed queries the other gallery is shown too."""
    chosen = replace(MODEL_EMBEDDINGS, without_query_image=settings.exclude_query_image)
    if not retrieval_set.holds_query_images or retrieval_set.mode[0] != _BOTH:
        return ProtocolChoice((chosen,))
    return ProtocolChoice((chosen,), (replace(chosen, without_query_image=not settings.exclude_query_image),))


def base_protocols(
    model: VisualRetrievalModel, retrieval_set: RetrievalSet, settings: EvaluationSettings
) -> ProtocolChoice:
    """The protocols fair to an untuned model: new heads are random, so where one tower will do, its features count.

    Of a query with text and image each part by itself is tried as well, with and without its picture in the gallery.
    """
    letter, document = retrieval_set.mode[0], retrieval_set.mode[2]
    if letter != _BOTH:
        features, description = _compared_vectors(model, letter, document)
        return ProtocolChoice(
            (EvaluationProtocol(features, description, without_query_image=settings.exclude_query_image),)
        )
    galleries = (False, True) if retrieval_set.holds_query_images else (settings.exclude_query_image,)
    parts: tuple[QueryPart, ...] = ("image", "text", "whole")
    return ProtocolChoice(
        tuple(
            EvaluationProtocol(*_compared_vectors(model, _LETTER.get(part, _BOTH), document), part, without)
            for without in galleries
            for part in parts
        )
    )


def query_part_label(protocol: EvaluationProtocol) -> str:
    """The name of the query's part that a protocol encodes.

    >>> query_part_label(replace(MODEL_EMBEDDINGS, part="image"))
    'image only'
    """
    return _PART_LABELS[protocol.part]


def _compared_vectors(model: VisualRetrievalModel, query: str, document: str) -> tuple[Features, str]:
    """Vectors by which an untuned model compares a query with a document of these kinds (t, i, m), and in words."""
    if not model.model.has_new_heads:
        return "model", "the pretrained model's embeddings"
    if query == document and query != _BOTH:
        tower = "image" if query == "i" else "text"
        return "tower", f"the pretrained {tower} tower's own features"
    return "model", "untrained projection heads" + ("" if _BOTH in (query, document) else ", so about chance")
