"""Predictor: open a checkpoint, embed texts and images, compare them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from vembed.errors import DataError, UsageError
from vembed.grad_cache.cachex.tree_utils import pad_token_rows, token_rows
from vembed.model.items import Embeddable, Picture, as_item, image_source, numbered
from vembed.model.modeling import VisualRetrievalModel
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec
from vembed.scoring import get_scorer
from vembed.types import Embeddings, Item, Side

Output = Literal["numpy", "torch"]
Vectors = NDArray[np.float32] | Tensor | list[NDArray[np.float32]] | list[Tensor]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Predictor:
    """A model ready to embed, from the folder of a checkpoint ("output/final") or a hub id.

    Whatever it was trained with (prompts, pooling, lengths, image size, normalisation) is read from there, so an
    embedding equals the one in training. Each encode method takes one thing or a list: [dim] or [items, dim]. A model
    with a vector per token gives [tokens, dim] for one thing, and a list of those for a list. What cannot be read
    raises DataError with its number, from 0 ("item 3: a.png: ..."): rows are always those of the list.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "auto",
        *,
        batch_size: int = 64,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        torch_compile: bool = False,
        settings: ModelSettings | None = None,
    ) -> None:
        """device: auto | cpu | cuda (or cuda:1) | mps. dtype: float32 | bfloat16 | float16 of all that it holds;
        default: as settings.torch_dtype says, which is float32.

        torch_compile: compile the towers, which pays for many items. A folder of adapters is opened with its base.
        settings: in the place of the checkpoint's own, such as ModelSettings(pool_factor=3). Raises ModelError,
        CheckpointError, UsageError for a device that torch does not have here.
        """
        where, number_type = _device(device), _dtype(dtype)
        if dtype is not None and settings is not None and "torch_dtype" in settings.model_fields_set:
            raise UsageError(f"dtype {dtype!r} and settings.torch_dtype {settings.torch_dtype!r}: give one of the two")
        flags = {"trust_remote_code": trust_remote_code, "torch_compile": torch_compile}
        given = {"model_name": str(folder)} | {key: True for key, asked in flags.items() if asked}
        settings = (settings or ModelSettings()).model_copy(update=given)
        self.model = VisualRetrievalModel.from_pretrained(None, settings)
        self.batch_size = batch_size
        self.model.model.requires_grad_(False).to(device=where, dtype=number_type)

    @property
    def spec(self) -> ModelSpec:
        """The model's spec: how it reads its inputs, and how its embeddings are compared."""
        return self.model.spec

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.model.model.dim

    def encode_text(
        self, texts: str | Sequence[str], *, side: Side = "query", width: int | None = None, output: Output = "numpy"
    ) -> Vectors:
        """Embed texts (a text that looks like a path is a text). `side` picks the prompt, if the model has any."""
        single = isinstance(texts, str)
        entries = [texts] if isinstance(texts, str) else _as_list(texts, "a text is a str")
        items = [as_item({"text": text}, origin) for text, origin in numbered(entries)]
        return self._encode(items, side, width, output, single=single)

    def encode_image(
        self,
        images: Picture | Sequence[Picture],
        *,
        side: Side = "document",
        width: int | None = None,
        output: Output = "numpy",
    ) -> Vectors:
        """Embed images: paths, encoded bytes or PIL images."""
        single = isinstance(images, str | os.PathLike | bytes | PIL.Image.Image)
        pictures = [images] if single else _as_list(images, "an image is a path, bytes or a PIL image")
        items = [Item(images=(image_source(picture, name),), origin=name) for picture, name in numbered(pictures)]
        return self._encode(items, side, width, output, single=single)

    def encode(
        self,
        items: Embeddable | Sequence[Embeddable],
        *,
        side: Side = "document",
        width: int | None = None,
        output: Output = "numpy",
    ) -> Vectors:
        """Embed anything: a str is a text; a Path, bytes or PIL image is an image; {"text": ..., "image": ...} is both.

        The image in a dict may be a path given as str, or a list of images.
        """
        single = isinstance(items, str | os.PathLike | bytes | PIL.Image.Image | Mapping | Item)
        entries = [items] if single else _as_list(items, "an item is a text, an image or a dict of both")
        named = [as_item(entry, origin) for entry, origin in numbered(entries)]
        return self._encode(named, side, width, output, single=single)

    def score(self, queries: Vectors, documents: Vectors) -> NDArray[np.float32]:
        """Scores [queries, documents] of what the encode methods gave, by the model's own measure; bigger is better."""
        scorer = get_scorer(self.spec.similarity, self.spec.scoring)
        dims = 1 if self.spec.scoring == "single" else 2
        scores: NDArray[np.float32] = scorer(_as_embeddings(queries, dims), _as_embeddings(documents, dims)).numpy()
        return scores

    def _encode(self, items: Sequence[Item], side: Side, width: int | None, output: Output, *, single: bool) -> Vectors:
        if output not in ("numpy", "torch"):
            raise UsageError(f"output {output!r} is unknown; known are: numpy, torch")
        _refuse_empty_texts(items)
        embeddings = self.model.encode(items, side=side, batch_size=self.batch_size, width=width)
        if self.spec.scoring == "single":
            vectors = embeddings.vectors[0] if single else embeddings.vectors
            return vectors if output == "torch" else vectors.numpy()
        rows = token_rows(embeddings)
        if single:
            return rows[0] if output == "torch" else rows[0].numpy()
        return rows if output == "torch" else [row.numpy() for row in rows]


def _as_list(things: object, kind: str) -> list[object]:
    """The entries of a list or other iterable. Raises UsageError for anything else."""
    if not isinstance(things, Iterable):
        raise UsageError(f"{kind}, and several are a list of those; not {type(things).__name__}")
    return list(things)


def _refuse_empty_texts(items: Sequence[Item]) -> None:
    """A model has a vector for an empty text too, which says nothing; training refuses such a row as well."""
    empty = [number for number, item in enumerate(items) if item.text is not None and not item.text.strip()]
    if empty:
        where = items[empty[0]].origin or f"item {empty[0]}"
        raise DataError(f"{where}: the text is empty (so are {len(empty)} of {len(items)}); leave such items out")


def _as_embeddings(vectors: Vectors, dims: int) -> Embeddings:
    """Vectors that an encode method gave as Embeddings, [rows, dim] or [rows, tokens, dim]; dims: axes of one item."""
    if isinstance(vectors, list | tuple) and dims == 2:
        return pad_token_rows([torch.as_tensor(row).cpu() for row in vectors])
    rows = torch.as_tensor(vectors).cpu()
    return Embeddings(rows.unsqueeze(0) if rows.ndim == dims else rows)


def _device(name: str) -> str:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    available = {"cpu": True, "cuda": cuda, "mps": mps}
    if kind not in available or (index and not index.isdecimal()):
        raise UsageError(f"device {name!r} is unknown; known are: auto, {', '.join(available)} (or cuda:1)")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise UsageError(f"device {name!r} is not available to torch on this machine; use auto or cpu")
    return name


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in _DTYPES:
        raise UsageError(f"dtype {name!r} is unknown; known are: {', '.join(_DTYPES)}")
    return _DTYPES[name]
