"""Files of late-interaction models: a MultiVectorEncoder's (sentence-transformers), read and written, and PyLate's."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.errors import ModelError
from vembed.model.folder.find import STANFORD_FILE, Json, JsonFiles, read_table
from vembed.model.folder.sentence_layers import TOKENS, layer_config, read_layer
from vembed.model.spec import LateInteraction, LayerSpec, ModelSpec

_KNOWN_MODULES = ("Dense", "HierarchicalTokenPooling", "MultiVectorMask", "Normalize", "Transformer")
_MODEL_TYPES = ("ColBERT", "MultiVectorEncoder")  # PyLate up to 3, and since
_DEFAULT_QUERY_LENGTH = 32

_BASE = "sentence_transformers.base.modules"
_TRANSFORMER = f"{_BASE}.transformer.Transformer"
_PACKAGE = "sentence_transformers.multi_vector_encoder.modules"
# In modules.json where sentence-transformers has no such module: opening fails there instead of giving other vectors.
_UNKNOWN_PACKAGE = "only_vembed_can_open_this_model"


@dataclass(frozen=True)
class LateFolder:
    """The settings in the files of a late-interaction model; those not named here as in ModelSpec and LateInteraction.

    layers: those after the encoder, in order. fill_tokens: length of expanded queries, with mask tokens. query_limit,
    document_limit: most tokens of each. starts_answer: the chat template is rendered with add_generation_prompt.
    """

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
    """True if modules.json (kinds) or config_sentence_transformers.json (general) describe a vector per token."""
    return general.get("model_type") in _MODEL_TYPES or "MultiVectorMask" in kinds


def read_late_folder(folder: Path, modules: Sequence[tuple[str, str]], general: Json, transformer: Json) -> LateFolder:
    """The settings in the modules' files. Raises ModelError for options that change vectors and are not supported.

    modules: kind and path of each. general: config_sentence_transformers.json. transformer: the Transformer module's.
    """
    unknown = sorted({kind for kind, _ in modules} - {*_KNOWN_MODULES})
    if unknown:
        raise ModelError(
            f"{folder / 'modules.json'} names {', '.join(unknown)}; of models with a vector per token only"
            f" {', '.join(_KNOWN_MODULES)} are supported"
        )
    pylate = general.get("model_type") == "ColBERT"
    if pylate:
        transformer = {**transformer, **_pylate_lengths(general)}
    mask = _module_config(folder, modules, "MultiVectorMask")
    pooling = _module_config(folder, modules, "HierarchicalTokenPooling")
    _refuse_unsupported_options(folder, mask, pooling)
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
    """PyLate's markers of queries and documents ("[Q] "), each with the prompt after it."""
    prompts: Mapping[str, str] = general.get("prompts") or {}
    found = {}
    for side in ("query", "document"):
        prefix = general.get(f"{side}_prefix")
        if prefix is not None:
            found[side] = prefix + (prompts.get(side) or "").removeprefix(prefix)
    return found


def is_stanford_colbert(config: Json) -> bool:
    """True for a ColBERT in Stanford's format, with the projection among the encoder's weights."""
    return "HF_ColBERT" in (config.get("architectures") or ())


def read_stanford_colbert(folder: Path, width: int) -> tuple[LateFolder, dict[str, str]]:
    """Settings and markers (by side) in a Stanford ColBERT's artifact.metadata. width: of its hidden states."""
    found: Json = read_table(folder / STANFORD_FILE) or {}
    dim = int(found.get("dim") or 128)
    layer = LayerSpec(kind="dense", path="1_Dense", inputs=width, outputs=dim, bias=False, activation="Identity")
    fill = int(found.get("query_maxlen") or _DEFAULT_QUERY_LENGTH)
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
        "length": lengths.pop("query_length", None) or _DEFAULT_QUERY_LENGTH,
        "attend": bool(general.get("attend_to_expansion_tokens")),
    }
    return {**lengths, "query_expansion": fill}


def _module_config(folder: Path, modules: Sequence[tuple[str, str]], kind: str) -> Json:
    path = next((path for found, path in modules if found == kind), None)
    return dict(read_table(folder / path / "config.json") or {}) if path is not None else {}


def _refuse_unsupported_options(folder: Path, mask: Json, pooling: Json) -> None:
    problems = []
    if mask.get("keep_only_token_ids"):
        problems.append("keep_only_token_ids keeps some tokens of documents only; use mask_prompts: true instead")
    if mask.get("skiplist_tasks", ["document"]) != ["document"] and mask.get("skiplist_words"):
        problems.append(f"skiplist_tasks {mask['skiplist_tasks']} leaves words out of queries")
    if pooling and pooling.get("tasks", ["document"]) != ["document"]:
        problems.append(f"tasks {pooling['tasks']} pools the tokens of queries")
    if problems:
        raise ModelError(f"{folder}: {'; '.join(problems)}, which is not supported")


def retrieval_files(spec: ModelSpec, added_length: int = 0) -> JsonFiles:
    """The MultiVectorEncoder files of a model with a transformers class for retrieval, which projects and normalises.

    added_length: tokens that its processor adds to `max_length`.
    """
    assert spec.late is not None
    output = {"method": "forward", "method_output_name": "embeddings"}
    transformer: dict[str, Any] = {
        "transformer_task": "retrieval",
        "modality_config": {"text": output, "image": output},
        "module_output_name": TOKENS,
    }
    if spec.max_length is not None:
        transformer["processing_kwargs"] = {"text": {"max_length": max(1, spec.max_length - added_length)}}
    modules = [("", _TRANSFORMER), ("1_MultiVectorMask", f"{_PACKAGE}.multi_vector_mask.MultiVectorMask")]
    return _with_pooling(
        spec, spec.late, transformer, modules, {"1_MultiVectorMask/config.json": _mask_config(spec.late)}
    )


def projection_files(spec: ModelSpec, rendering: dict[str, Any] | None = None) -> JsonFiles:
    """The MultiVectorEncoder files of a text encoder or vision-language model with a projection of its token vectors.

    rendering: the Transformer module's settings of a vision-language model.
    """
    assert spec.late is not None
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer: dict[str, Any] = rendering or {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": output},
        "module_output_name": TOKENS,
        "max_seq_length": spec.max_length,
        "do_lower_case": spec.lower_case,
        "query_length": spec.late.query_limit,
    }
    if spec.num_query_tokens:
        transformer["query_expansion"] = {
            "strategy": "fixed" if spec.late.query_limit == spec.num_query_tokens else "min",
            "attend": spec.late.attends_to_fill,
            "token": spec.late.fill_token,
            "length": spec.num_query_tokens,
        }
    between = {"module_input_name": TOKENS, "module_output_name": TOKENS}
    files = {f"{layer.path}/config.json": layer_config(layer) | between for layer in spec.layers}
    modules = [("", _TRANSFORMER), *((layer.path, f"{_BASE}.dense.Dense") for layer in spec.layers)]
    mask = f"{len(modules)}_MultiVectorMask"
    modules += [(mask, f"{_PACKAGE}.multi_vector_mask.MultiVectorMask")]
    files[f"{mask}/config.json"] = _mask_config(spec.late)
    if spec.normalize:
        path = f"{len(modules)}_Normalize"
        modules += [(path, f"{_BASE}.normalize.Normalize")]
        files[f"{path}/config.json"] = between
    return _with_pooling(spec, spec.late, transformer, modules, files)


def opens_in_sentence_transformers(spec: ModelSpec) -> bool:
    """True if sentence-transformers' modules give the same vectors; they add no tokens to ColModernVBERT's queries."""
    assert spec.late is not None
    if spec.late.kind == "vlm" and spec.num_query_tokens:
        return False  # query expansion is not applied to a chat template there
    ours = spec.topk_tokens or spec.document_tokens or spec.distance_threshold or spec.mask_prompts
    return not ours and spec.late.architecture != "colmodernvbert"


def _with_pooling(
    spec: ModelSpec,
    late: LateInteraction,
    transformer: dict[str, Any],
    modules: list[tuple[str, str]],
    files: JsonFiles,
) -> JsonFiles:
    """All files, with those of token pooling if the spec has it."""
    if (spec.pool_factor or 1) > 1:
        path = f"{len(modules)}_HierarchicalTokenPooling"
        modules = [*modules, (path, f"{_PACKAGE}.token_pooling.HierarchicalTokenPooling")]
        files[f"{path}/config.json"] = {
            "pool_factor": spec.pool_factor,
            "num_protected_tokens": late.protected_tokens,
            "normalize_embeddings": late.normalizes_pools,
            "tasks": ["document"],
        }
    if not opens_in_sentence_transformers(spec):
        modules = [*modules, (f"{len(modules)}_Reduction", f"{_UNKNOWN_PACKAGE}.Reduction")]
    general = {
        "model_type": "MultiVectorEncoder",
        "prompts": {"query": spec.query_prompt, "document": spec.document_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": "maxsim",
    }
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)
    ]
    return {
        "modules.json": listed,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": general,
        **files,
    }


def _mask_config(late: LateInteraction) -> dict[str, Any]:
    return {
        "skiplist_words": list(late.skipped_words),
        "skiplist_tasks": ["document"],
        "keep_only_token_ids": None,
    }
