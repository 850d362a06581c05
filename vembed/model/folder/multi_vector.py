"""What the files of sentence-transformers' MultiVectorEncoder, and of PyLate before it, say about token vectors."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.errors import ModelError
from vembed.model.folder.find import STANFORD_FILE, read_json
from vembed.model.folder.sentence_layers import TOKENS, read_layer
from vembed.model.spec import LayerSpec

Json = dict[str, Any]  # Any: JSON

_KNOWN = ("Dense", "HierarchicalTokenPooling", "MultiVectorMask", "Normalize", "Transformer")
_MODEL_TYPES = ("ColBERT", "MultiVectorEncoder")  # PyLate up to 3, and since
_CLASSIC_LENGTH = 32


@dataclass(frozen=True)
class LateFolder:
    """layers: those after the encoder, in order. fill_tokens: what queries are filled up to. query_limit,
    document_limit: tokens that are kept. starts_answer: whether a chat template is rendered with the beginning of an
    answer. The rest as in ModelSpec and its LateInteraction."""

    layers: tuple[LayerSpec, ...] = ()
    normalize: bool = True
    skipped_words: tuple[str, ...] = ()
    fill_tokens: int | None = None
    fill_token: str | None = None
    attends_to_fill: bool = False
    query_limit: int | None = None
    document_limit: int | None = None
    pool_factor: float | None = None
    protected_tokens: int = 0
    normalizes_pools: bool = True
    starts_answer: bool = True


def is_late(kinds: Sequence[str], general: Json) -> bool:
    """Whether the kinds of modules and config_sentence_transformers.json describe a vector per token."""
    return general.get("model_type") in _MODEL_TYPES or "MultiVectorMask" in kinds


def read_late_folder(folder: Path, modules: Sequence[tuple[str, str]], general: Json, transformer: Json) -> LateFolder:
    """What the modules (kind and path) say. Raises ModelError for what changes the vectors and is not supported."""
    unknown = sorted({kind for kind, _ in modules} - {*_KNOWN})
    if unknown:
        raise ModelError(
            f"{folder / 'modules.json'} names {', '.join(unknown)}; of models with a vector per token only"
            f" {', '.join(_KNOWN)} are supported"
        )
    pylate = general.get("model_type") == "ColBERT"
    if pylate:
        transformer = {**transformer, **_pylate_lengths(general)}
    mask = _config(folder, modules, "MultiVectorMask")
    pooling = _config(folder, modules, "HierarchicalTokenPooling")
    _refuse_unknown(folder, mask, pooling)
    skipped = general.get("skiplist_words") or list(string.punctuation) if pylate else mask.get("skiplist_words")
    rendering: Json = (transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    fill: Json = transformer.get("query_expansion") or {}
    return LateFolder(
        layers=tuple(read_layer(folder, kind, path, TOKENS) for kind, path in modules if kind == "Dense"),
        normalize=pylate or any(kind == "Normalize" for kind, _ in modules),
        skipped_words=tuple(skipped or ()),
        fill_tokens=fill.get("length"),
        fill_token=fill.get("token"),
        attends_to_fill=bool(fill.get("attend")),
        query_limit=fill["length"] if fill.get("strategy") == "fixed" else transformer.get("query_length"),
        document_limit=transformer.get("document_length"),
        pool_factor=pooling.get("pool_factor"),
        protected_tokens=int(pooling.get("num_protected_tokens", 1)) if pooling else 0,
        normalizes_pools=bool(pooling.get("normalize_embeddings", False)) if pooling else True,
        starts_answer=bool(rendering.get("add_generation_prompt")),
    )


def pylate_prompts(general: Json) -> dict[str, str]:
    """The markers that PyLate puts before queries and documents, with the prompts after them."""
    prompts: Mapping[str, str] = general.get("prompts") or {}
    found = {}
    for side in ("query", "document"):
        prefix = general.get(f"{side}_prefix")
        if prefix is not None:
            found[side] = prefix + (prompts.get(side) or "").removeprefix(prefix)
    return found


def is_stanford(config: Json) -> bool:
    """Whether config.json is of a ColBERT as its authors save it: one file of weights, the projection among them."""
    return "HF_ColBERT" in (config.get("architectures") or ())


def read_stanford(folder: Path, width: int) -> tuple[LateFolder, dict[str, str]]:
    """What artifact.metadata says beside a ColBERT of its authors' over an encoder of that width, and its markers."""
    found: Json = read_json(folder / STANFORD_FILE) or {}
    dim = int(found.get("dim") or 128)
    layer = LayerSpec(kind="dense", path="1_Dense", inputs=width, outputs=dim, bias=False, activation="Identity")
    fill = int(found.get("query_maxlen") or _CLASSIC_LENGTH)
    late = LateFolder(
        layers=(layer,),
        skipped_words=tuple(string.punctuation) if found.get("mask_punctuation", True) else (),
        fill_tokens=fill,
        attends_to_fill=bool(found.get("attend_to_mask_tokens")),
        query_limit=fill,
        document_limit=found.get("doc_maxlen"),
    )
    markers = (found.get("query_token_id") or "[unused0]", found.get("doc_token_id") or "[unused1]")
    return late, dict(zip(("query", "document"), (f"{marker} " for marker in markers), strict=True))


def _pylate_lengths(general: Json) -> Json:
    lengths = {key: general[key] for key in ("query_length", "document_length") if general.get(key) is not None}
    if general.get("do_query_expansion") is False:
        return lengths
    fill = {
        "strategy": "fixed",
        "length": lengths.pop("query_length", None) or _CLASSIC_LENGTH,
        "attend": bool(general.get("attend_to_expansion_tokens")),
    }
    return {**lengths, "query_expansion": fill}


def _config(folder: Path, modules: Sequence[tuple[str, str]], kind: str) -> Json:
    path = next((path for found, path in modules if found == kind), None)
    return dict(read_json(folder / path / "config.json") or {}) if path is not None else {}


def _refuse_unknown(folder: Path, mask: Json, pooling: Json) -> None:
    problems = []
    if mask.get("keep_only_token_ids"):
        problems.append("keep_only_token_ids keeps some tokens of documents only; use mask_prompts: true instead")
    if mask.get("skiplist_tasks", ["document"]) != ["document"] and mask.get("skiplist_words"):
        problems.append(f"skiplist_tasks {mask['skiplist_tasks']} leaves words out of queries")
    if pooling and pooling.get("tasks", ["document"]) != ["document"]:
        problems.append(f"tasks {pooling['tasks']} pools the tokens of queries")
    if problems:
        raise ModelError(f"{folder}: {'; '.join(problems)}, which is not supported")
