"""Counts the texts that are longer than a model reads."""

from vembed.evaluation.relevance import RetrievalSet
from vembed.model.modeling import VisualRetrievalModel
from vembed.types import Item, Side

_TEXTS_AT_ONCE = 256


def count_truncated(model: VisualRetrievalModel, retrieval_set: RetrievalSet) -> int:
    """Distinct texts of a set, queries and documents, whose ends the model does not see."""
    return _count(model, retrieval_set.queries, "query") + _count(model, retrieval_set.documents, "document")


def _count(model: VisualRetrievalModel, items: tuple[Item, ...], side: Side) -> int:
    texts = sorted({item.text for item in items if item.text is not None}, key=len)
    parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    return sum(model.processor.prepare([Item(text=text) for text in part], side).num_truncated for part in parts)
