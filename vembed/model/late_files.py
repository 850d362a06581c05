"""The files by which sentence-transformers' MultiVectorEncoder opens a late-interaction model."""

from typing import Any

from vembed.model.folder.sentence_layers import TOKENS, layer_config
from vembed.model.spec import LateInteraction, ModelSpec

JsonFiles = dict[str, Any]  # path inside the folder -> JSON

_BASE = "sentence_transformers.base.modules"
_TRANSFORMER = f"{_BASE}.transformer.Transformer"
_PACKAGE = "sentence_transformers.multi_vector_encoder.modules"
# Named in modules.json where no module of theirs does the same: opening fails there instead of giving other vectors.
_NOT_THEIRS = "only_vembed_can_open_this_model"


def retrieval_files(spec: ModelSpec, added_length: int = 0) -> JsonFiles:
    """The files of a model that transformers has a class for, which projects and normalises by itself.

    added_length: what its processor adds to the text length that it is given.
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
    return _with_pooling(spec, spec.late, transformer, modules, {"1_MultiVectorMask/config.json": _mask(spec.late)})


def projection_files(spec: ModelSpec, rendering: dict[str, Any] | None = None) -> JsonFiles:
    """The files of a text encoder whose token vectors are projected, or of a vision-language model that is rendered so.

    rendering: the Transformer module's settings of the latter.
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
    files[f"{mask}/config.json"] = _mask(spec.late)
    if spec.normalize:
        path = f"{len(modules)}_Normalize"
        modules += [(path, f"{_BASE}.normalize.Normalize")]
        files[f"{path}/config.json"] = between
    return _with_pooling(spec, spec.late, transformer, modules, files)


def expressible(spec: ModelSpec) -> bool:
    """Whether their modules give the same vectors. Theirs put no augmentation tokens after ColModernVBERT's queries."""
    assert spec.late is not None
    if spec.late.kind == "vlm" and spec.num_query_tokens:
        return False  # theirs fill no queries that a chat template renders
    ours = spec.topk_tokens or spec.document_tokens or spec.distance_threshold or spec.mask_prompts
    return not ours and spec.late.architecture != "colmodernvbert"


def _with_pooling(
    spec: ModelSpec,
    late: LateInteraction,
    transformer: dict[str, Any],
    modules: list[tuple[str, str]],
    files: JsonFiles,
) -> JsonFiles:
    """All files, those of token pooling among them."""
    if (spec.pool_factor or 1) > 1:
        path = f"{len(modules)}_HierarchicalTokenPooling"
        modules = [*modules, (path, f"{_PACKAGE}.token_pooling.HierarchicalTokenPooling")]
        files[f"{path}/config.json"] = {
            "pool_factor": spec.pool_factor,
            "num_protected_tokens": late.protected_tokens,
            "normalize_embeddings": late.normalizes_pools,
            "tasks": ["document"],
        }
    if not expressible(spec):
        modules = [*modules, (f"{len(modules)}_Reduction", f"{_NOT_THEIRS}.Reduction")]
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


def _mask(late: LateInteraction) -> dict[str, Any]:
    return {
        "skiplist_words": list(late.skipped_words),
        "skiplist_tasks": ["document"],
        "keep_only_token_ids": None,
    }
