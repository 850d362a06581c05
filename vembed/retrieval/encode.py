"""Encoding for search: every distinct item once, however often and in however many galleries it stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vembed.data.hashing import content_hash
from vembed.errors import ModelError
from vembed.grad_cache.cachex.tree_utils import concat_rows, ragged_tokens, select_rows
from vembed.model.encoding import Features
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.spec import ModelSpec
from vembed.types import Embeddings, Item, Ragged, Side

Encoded = Embeddings | Ragged  # Ragged: of tokens, [tokens, dim] and how many each row has


@dataclass(frozen=True)
class Encoding:
    """The options of encoding. features "tower": the towers' own, before heads that were never trained."""

    batch_size: int = 64
    width: int | None = None
    features: Features = "model"


class ItemEncoder:
    """Encodes items with one model and remembers them, so that an item of several sets is encoded once.

    Embeddings are on the CPU in float32, rows in the order of the items. Those of tokens are Ragged, held without
    padding: one long document among many short ones makes none of them longer.
    """

    def __init__(self, model: VisualRetrievalModel, encoding: Encoding) -> None:
        self._model = model
        self._encoding = encoding
        self._stores: dict[Side, _EmbeddingCache] = {}

    def encode(self, items: Sequence[Item], *, side: Side, keys: Sequence[int] | None = None) -> Encoded:
        """Embeddings of the items, [items, dim], or their tokens; `keys` are their content hashes, if known.

        Raises DataError for an image that cannot be read, ModelError for an item the model cannot take or when it
        gives anything but finite numbers.
        """
        keys = [content_hash(item) for item in items] if keys is None else keys
        store = self._stores.setdefault(canonical_side(self._model.spec, side), _EmbeddingCache())
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in store.rows}
        if new:
            store.add(list(new), self._encode_distinct(list(new.values()), side))
        return store.take(keys)

    def _encode_distinct(self, items: list[Item], side: Side) -> Encoded:
        by_token = self._model.spec.scoring != "single"
        step = 8 * self._encoding.batch_size if by_token else len(items)
        parts: list[Encoded] = []
        for start in range(0, len(items), step):
            part = self._encode_some(items[start : start + step], side)
            parts.append(ragged_tokens(part) if part.vectors.ndim == 3 else part)
        return concat_rows(parts)

    def _encode_some(self, items: list[Item], side: Side) -> Embeddings:
        embeddings = self._model.encode(
            items,
            side=side,
            batch_size=self._encoding.batch_size,
            width=self._encoding.width,
            features=self._encoding.features,
        )
        refuse_not_finite(embeddings, items)
        return embeddings


def canonical_side(spec: ModelSpec, side: Side) -> Side:
    """One name for both sides where a model treats them alike, so that neither is encoded twice."""
    return "document" if spec.treats_sides_alike else side


@dataclass
class _EmbeddingCache:
    """The embeddings so far, and the row of each content hash among them."""

    rows: dict[int, int] = field(default_factory=dict)
    embeddings: Encoded | None = None

    def take(self, keys: Sequence[int]) -> Encoded:
        """The rows of these keys; the store's own, not a copy, where all are asked for in its order."""
        assert self.embeddings is not None, "items are never empty"
        if len(keys) == len(self.rows) and all(one == other for one, other in zip(keys, self.rows, strict=True)):
            return self.embeddings
        return select_rows(self.embeddings, torch.tensor([self.rows[key] for key in keys]))

    def add(self, keys: list[int], embeddings: Encoded) -> None:
        """Append the rows of `embeddings` under their keys."""
        first = len(self.rows)
        self.rows.update({key: first + number for number, key in enumerate(keys)})
        self.embeddings = embeddings if self.embeddings is None else concat_rows([self.embeddings, embeddings])


def refuse_not_finite(embeddings: Embeddings, items: Sequence[Item]) -> None:
    """Raise ModelError for a NaN: it compares as neither better nor worse, and any rank made from it would be a lie."""
    finite = embeddings.vectors.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        broken = [number for number, good in enumerate(finite.tolist()) if not good]
        raise ModelError(
            f"the model gives NaN or infinite numbers for {len(broken)} of {len(items)} items, the first being"
            f" {items[broken[0]].origin or f'item {broken[0]}'}; its weights are broken or it overflows: train with a"
            " lower learning_rate, or encode in float32"
        )
