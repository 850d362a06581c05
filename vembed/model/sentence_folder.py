"""The files by which sentence-transformers opens a folder: how they are read, and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vembed.errors import ModelError
from vembed.model.files import SPEC_FILE, read_json
from vembed.model.late_folder import MODULES as LATE_MODULES
from vembed.model.late_folder import LateFolder, is_late, pylate_prompts, read_late_folder
from vembed.model.spec import ModelSpec, Pooling

Json = dict[str, Any]  # Any: JSON
JsonFiles = dict[str, Any]  # path inside the folder -> JSON

_POOLING_OF_MODE: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_MODE_OF_POOLING = {pooling: mode for mode, pooling in _POOLING_OF_MODE.items()}
_LEGACY_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}
_TRANSFORMERS = ("Transformer", "CLIPModel")


@dataclass(frozen=True)
class SentenceFolder:
    """What the files of a sentence-transformers model say. `model_path`: where the Hugging Face files lie within."""

    model_path: str
    pooling: Pooling | None
    normalize: bool
    max_length: int | None
    lower_case: bool
    query_prompt: str
    document_prompt: str
    similarity: str | None
    late: LateFolder | None = None


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """What modules.json and its companions say, None when there is no modules.json.

    Raises ModelError for modules that would change the embedding in a way that is not supported here.
    """
    modules = read_json(folder / "modules.json")
    if modules is None:
        return None
    listed = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in modules]
    paths = dict(listed)
    general: Json = read_json(folder / "config_sentence_transformers.json") or {}
    late = is_late(listed, general)
    unknown = set(paths) - {*_TRANSFORMERS, "Pooling", "Normalize"} - (LATE_MODULES if late else set())
    if unknown:
        raise ModelError(
            f"{folder / 'modules.json'} names {', '.join(sorted(unknown))}; only Transformer, Pooling and "
            "Normalize are supported"
        )
    model_path = next((paths[kind] for kind in _TRANSFORMERS if kind in paths), "")
    settings = _transformer_settings(folder / model_path)
    prompts = {**(general.get("prompts") or {}), **(pylate_prompts(general) if late else {})}
    return SentenceFolder(
        model_path=model_path,
        pooling=_pooling(folder / paths["Pooling"]) if "Pooling" in paths else _own_output(settings),
        normalize="Normalize" in paths,
        max_length=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case")),
        query_prompt=_prompt(prompts, general, "query"),
        document_prompt=_prompt(prompts, general, "document", "passage", "corpus"),
        similarity=general.get("similarity_fn_name"),
        late=read_late_folder(folder, listed, general, settings) if late else None,
    )


def model_path(folder: Path) -> Path:
    """Where the Hugging Face files of a model lie: the folder itself, or the one that modules.json names."""
    if (folder / SPEC_FILE).is_file():
        return folder
    sentence = read_sentence_folder(folder)
    return folder / sentence.model_path if sentence else folder


def sentence_files(spec: ModelSpec, width: int) -> JsonFiles:
    """The JSON files that make sentence-transformers compute what this model computes; `width` is the tower's."""
    pooling = spec.pooling.get("text") or spec.pooling["vision"]
    kinds = ["Transformer", *(["Pooling"] if pooling in _MODE_OF_POOLING else [])]
    kinds += ["Normalize"] if spec.normalize else []
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    files: JsonFiles = {
        "modules.json": modules,
        "sentence_bert_config.json": _transformer_file(spec, pooling),
        "config_sentence_transformers.json": {
            "prompts": {"query": spec.query_prompt, "document": spec.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": spec.similarity,
        },
    }
    if "Pooling" in kinds:
        mode = _MODE_OF_POOLING[pooling]
        files["1_Pooling/config.json"] = {
            "word_embedding_dimension": width,
            **{key: name == mode for name, key in _LEGACY_KEYS.items()},
            "include_prompt": True,
        }
    return files


def tower_spec(spec: ModelSpec, subfolder: str) -> ModelSpec:
    """How the model in a subfolder is used by itself: a composed model's tower; without subfolder, the whole model."""
    if not subfolder:
        return spec
    if subfolder == "text":
        return spec.model_copy(update={"towers": ("text",), "pooling": {"text": spec.pooling["text"]}})
    update = {"towers": ("vision",), "pooling": {"vision": spec.pooling["vision"]}, "max_length": None}
    return spec.model_copy(update=update)


def _transformer_settings(folder: Path) -> Json:
    names = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    for name in names:
        settings = read_json(folder / f"sentence_{name}_config.json")
        if settings is not None:
            return dict(settings)
    return {}


def _own_output(settings: Json) -> Pooling | None:
    if settings.get("module_output_name") != "sentence_embedding":
        return None
    methods = settings.get("modality_config", {})
    return "pooler" if methods.get("text", {}).get("method") == "forward" else "own"


def _pooling(folder: Path) -> Pooling:
    config: Json | None = read_json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder / 'config.json'} is missing; modules.json says that pooling is described there")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode, key in _LEGACY_KEYS.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLING_OF_MODE:
        raise ModelError(
            f"{folder / 'config.json'} pools by {' + '.join(modes)}; supported are: {', '.join(_POOLING_OF_MODE)}"
        )
    if not config.get("include_prompt", True):
        raise ModelError(f"{folder / 'config.json'} leaves the prompt out of the pooling, which is not supported")
    return _POOLING_OF_MODE[modes[0]]


def _prompt(prompts: Mapping[str, str], general: Json, *names: str) -> str:
    default = prompts.get(general.get("default_prompt_name") or "", "")
    return next((prompts[name] for name in names if name in prompts), default)


def _transformer_file(spec: ModelSpec, pooling: Pooling) -> Json:
    if len(spec.towers) == 2:
        methods = {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        }
    else:
        modality = "text" if spec.towers == ("text",) else "image"
        output = "last_hidden_state" if pooling in _MODE_OF_POOLING else "pooler_output"
        methods = {modality: {"method": "forward", "method_output_name": output}}
    content: Json = {
        "transformer_task": "feature-extraction",
        "modality_config": methods,
        "module_output_name": "token_embeddings" if pooling in _MODE_OF_POOLING else "sentence_embedding",
    }
    if spec.max_length is not None:
        content |= {"max_seq_length": spec.max_length, "do_lower_case": spec.lower_case}
    if spec.pad_to is not None:
        content["processing_kwargs"] = {"text": {"padding": "max_length", "max_length": spec.pad_to}}
    return content
