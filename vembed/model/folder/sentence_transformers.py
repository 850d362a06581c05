"""modules.json and the other JSON files of sentence-transformers: read, and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from vembed.errors import ModelError
from vembed.model.folder.find import SPEC_FILE, Json, JsonFiles, read_json, read_table
from vembed.model.folder.multi_vector import LateFolder, is_late, pylate_prompts, read_late_folder
from vembed.model.folder.sentence_layers import KIND_OF_LAYER, LAYER_KINDS, layer_config, read_layer
from vembed.model.spec import LayerSpec, ModelSpec, Pooling

# Our poolings by sentence-transformers' modes, in the order in which it concatenates several.
_POOLING_OF_MODE = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_MODE_OF_POOLING = {pooling: mode for mode, pooling in _POOLING_OF_MODE.items()}
_LEGACY_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_TRANSFORMERS = ("Transformer", "CLIPModel")
_SIDES = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class SentenceModule:
    """An entry of modules.json: its class's name, also with its package, and its subfolder."""

    kind: str
    type_name: str
    path: str


@dataclass(frozen=True)
class SentenceFolder:
    """The settings in a sentence-transformers folder. model_path: the subfolder of the transformers files.

    query_prompt, document_prompt: None if the files name none. unsupported: why the model is not supported as one with
    one vector per item, None if it is; the rest is then not read. modalities, processing: modality_config and
    processing_kwargs. late: the settings of a model with a vector per token.
    """

    modules: tuple[SentenceModule, ...]
    model_path: str
    unsupported: str | None = None
    pooling: Pooling | None = None
    pool_prompt: bool = True
    layers: tuple[LayerSpec, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    padding_side: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    other_prompts: Mapping[str, str] = field(default_factory=dict)
    similarity: str | None = None
    modalities: Mapping[str, Any] = field(default_factory=dict)
    processing: Mapping[str, Any] = field(default_factory=dict)
    late: LateFolder | None = None


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """The settings in modules.json and the files that belong to it; None without modules.json. Raises ModelError."""
    modules = _read_modules(folder)
    if modules is None:
        return None
    model_path = next((module.path for module in modules if module.kind in _TRANSFORMERS), "")
    general: Json = read_table(folder / "config_sentence_transformers.json") or {}
    if is_late([module.kind for module in modules], general):
        return _read_late(folder, modules, model_path, general)
    settings = _transformer_settings(folder / model_path)
    unsupported = _unsupported_modules(modules, folder) or _unsupported_settings(settings, general, folder / model_path)
    if unsupported is not None:
        return SentenceFolder(modules, model_path, unsupported)
    prompts: dict[str, str] = dict(general.get("prompts") or {})
    pooling = next((module for module in modules if module.kind == "Pooling"), None)
    layers = tuple(read_layer(folder, one.kind, one.path) for one in modules if one.kind in LAYER_KINDS)
    normalize = bool(layers) and layers[-1].kind == "normalize"
    used = {name for names in _SIDES.values() for name in names}
    return SentenceFolder(
        modules=modules,
        model_path=model_path,
        pooling=_output_pooling(settings) if pooling is None else _pooling(folder / pooling.path),
        pool_prompt=pooling is None or _pools_prompt(folder / pooling.path),
        layers=layers[:-1] if normalize else layers,
        normalize=normalize,
        max_length=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case")),
        padding_side=_padding_side(settings),
        query_prompt=_prompt(prompts, general, "query"),
        document_prompt=_prompt(prompts, general, "document"),
        other_prompts={name: prompt for name, prompt in prompts.items() if name not in used},
        similarity=general.get("similarity_fn_name"),
        modalities=settings.get("modality_config") or {},
        processing=settings.get("processing_kwargs") or {},
    )


def model_path(folder: Path) -> Path:
    """The folder of config.json and weights: the folder itself, or the subfolder that modules.json names."""
    if (folder / SPEC_FILE).is_file():
        return folder
    sentence = read_sentence_folder(folder)
    return folder / sentence.model_path if sentence else folder


def modules_folder(model_folder: Path) -> Path:
    """The folder of modules.json: that of the transformers files, or the one above."""
    has_own = (model_folder / "modules.json").is_file() or not (model_folder.parent / "modules.json").is_file()
    return model_folder if has_own else model_folder.parent


def sentence_files(spec: ModelSpec, width: int) -> JsonFiles:
    """The JSON files with which sentence-transformers gives the same embeddings. width: of the tower's outputs."""
    pooling = spec.pooling.get("text") or spec.pooling["vision"]
    modes = [] if pooling in ("own", "pooler") else [_MODE_OF_POOLING.get(one, one) for one in pooling.split("+")]
    layers = [*spec.layers, *([LayerSpec(kind="normalize", path="")] if spec.normalize else [])]
    kinds = ["Transformer", *(["Pooling"] if modes else []), *(KIND_OF_LAYER[layer.kind] for layer in layers)]
    paths = [f"{number}_{kind}" if number else "" for number, kind in enumerate(kinds)]
    for number, layer in enumerate(spec.layers, start=len(kinds) - len(layers)):
        paths[number] = layer.path
    files: JsonFiles = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
        "sentence_bert_config.json": _transformer_file(spec, bool(modes)),
        "config_sentence_transformers.json": {
            "prompts": {**spec.other_prompts, "query": spec.query_prompt, "document": spec.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": spec.similarity,
        },
    }
    if modes:
        files[f"{paths[1]}/config.json"] = _pooling_file(modes, width, spec.pool_prompt)
    return files | {f"{layer.path}/config.json": layer_config(layer) for layer in spec.layers}


def unopenable(files: JsonFiles) -> JsonFiles:
    """The files with a module that does not exist, for a model whose inputs sentence-transformers would make otherwise:
    opening it there fails."""
    entries = files["modules.json"]
    number = len(entries)
    kind = "only_vembed_can_open_this_model.Conversation"
    entry = {"idx": number, "name": str(number), "path": f"{number}_Conversation", "type": kind}
    return {**files, "modules.json": [*entries, entry]}


def tower_spec(spec: ModelSpec, subfolder: str) -> ModelSpec:
    """The spec of a composed model's tower in that subfolder as a model of its own; of "", the spec itself."""
    if not subfolder:
        return spec
    if subfolder == "text":
        return spec.model_copy(update={"towers": ("text",), "pooling": {"text": spec.pooling["text"]}})
    update = {"towers": ("vision",), "pooling": {"vision": spec.pooling["vision"]}, "max_length": None, "layers": ()}
    return spec.model_copy(update=update)


def _read_modules(folder: Path) -> tuple[SentenceModule, ...] | None:
    file = folder / "modules.json"
    entries = read_json(file)
    if entries is None:
        return None
    try:
        found = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{file} is no list of modules with type and path") from error
    outside = [path for _, path in found if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts]
    if outside:
        raise ModelError(f"{file} names {outside[0]!r}, which is no subfolder of the model")
    return tuple(SentenceModule(name.rsplit(".", 1)[-1], name, path) for name, path in found)


def _read_late(folder: Path, modules: tuple[SentenceModule, ...], model_path: str, general: Json) -> SentenceFolder:
    """The settings in the files of a model with a vector per token."""
    settings = _transformer_settings(folder / model_path)
    prompts = {**dict(general.get("prompts") or {}), **pylate_prompts(general)}
    listed = [(module.kind, module.path) for module in modules]
    return SentenceFolder(
        modules=modules,
        model_path=model_path,
        unsupported=f"{folder / 'modules.json'} describes a vector per token, which only late_interaction models have",
        max_length=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case")),
        query_prompt=_prompt(prompts, general, "query"),
        document_prompt=_prompt(prompts, general, "document"),
        late=read_late_folder(folder, listed, general, settings),
    )


def _unsupported_modules(modules: Sequence[SentenceModule], folder: Path) -> str | None:
    """The reason why these modules are not a supported model (Transformer, Pooling, layers); None if they are."""
    file = folder / "modules.json"
    known = (*_TRANSFORMERS, "Pooling", *LAYER_KINDS)
    unknown = [
        one for one in modules if one.kind not in known or not one.type_name.startswith("sentence_transformers.")
    ]
    if unknown:
        able = "Transformer, Pooling, Dense, LayerNorm, Dropout and Normalize of sentence-transformers"
        return f"{file} names {', '.join(sorted({one.type_name for one in unknown}))}; only {able} are supported"
    kinds = [module.kind for module in modules]
    if not kinds or kinds[0] not in _TRANSFORMERS or "Pooling" in kinds[2:] or set(kinds[1:]) & set(_TRANSFORMERS):
        return f"{file} names {', '.join(kinds)} in this order; a Transformer comes first, its Pooling next"
    return None


def _transformer_settings(folder: Path) -> Json:
    names = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    for name in names:
        settings = read_table(folder / f"sentence_{name}_config.json")
        if settings is not None:
            return dict(settings)
    return {}


def _output_pooling(settings: Json) -> Pooling | None:
    if settings.get("module_output_name") != "sentence_embedding":
        return None
    methods = settings.get("modality_config", {})
    return "pooler" if methods.get("text", {}).get("method") == "forward" else "own"


def _unsupported_settings(settings: Json, general: Json, folder: Path) -> str | None:
    """The reason why these settings are not supported: they change embeddings or their similarity; None if they are."""
    if general.get("similarity_fn_name") in ("euclidean", "manhattan"):
        way = general["similarity_fn_name"]
        return f"{folder}: embeddings are compared by {way} distance; only cosine and dot are known"
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        return f"{folder}: sentence-transformers runs this model for {task}; only feature-extraction is supported"
    ways = {
        "config": settings.get("config_kwargs") or settings.get("config_args") or {},
        "processor": _tokenizer_arguments(settings),
    }
    harmless = {"config": ("trust_remote_code",), "processor": ("trust_remote_code", "padding_side", "use_fast")}
    # mask_ratio 0: an MAE sees whole images here in any case.
    odd = [
        f"{key} ({kind})"
        for kind, given in ways.items()
        for key, value in given.items()
        if key not in harmless[kind] and (key, value) != ("mask_ratio", 0)
    ]
    return f"{folder}: sentence-transformers sets {', '.join(odd)} here, which is not supported" if odd else None


def _tokenizer_arguments(settings: Json) -> Json:
    """The arguments with which the tokenizer is loaded."""
    return dict(settings.get("processor_kwargs") or settings.get("tokenizer_args") or {})


def _padding_side(settings: Json) -> str | None:
    """The tokenizer's padding side, None if the file does not set it."""
    return _tokenizer_arguments(settings).get("padding_side")


def _pooling(folder: Path) -> Pooling:
    config = _pooling_config(folder)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode, key in _LEGACY_KEYS.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    unknown = [mode for mode in modes if mode not in _POOLING_OF_MODE]
    if unknown or not modes:
        raise ModelError(
            f"{folder / 'config.json'} pools by {' + '.join(map(str, modes)) or 'nothing'}; known are:"
            f" {', '.join(_POOLING_OF_MODE)}"
        )
    return "+".join(_POOLING_OF_MODE[mode] for mode in modes)


def _pools_prompt(folder: Path) -> bool:
    return bool(_pooling_config(folder).get("include_prompt", True))


def _pooling_config(folder: Path) -> Json:
    config: Json | None = read_table(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder / 'config.json'} is missing; modules.json says that pooling is described there")
    return config


def _pooling_file(modes: list[str], width: int, pool_prompt: bool) -> Json:
    """1_Pooling/config.json; with a key per mode, as releases before 5.5 read it, unless modes are in another order."""
    in_order = [mode for mode in _LEGACY_KEYS if mode in modes] == modes
    ways: Json = {key: mode in modes for mode, key in _LEGACY_KEYS.items()} if in_order else {"pooling_mode": modes}
    return {"word_embedding_dimension": width, **ways, "include_prompt": pool_prompt}


def _prompt(prompts: Mapping[str, str], general: Json, side: str) -> str | None:
    """The prompt of a side: its own, else the default prompt if that is not another side's."""
    named = [name for names in _SIDES.values() for name in names]
    default = general.get("default_prompt_name")
    fallback = prompts.get(default) if default and default not in named else None
    return next((prompts[name] for name in _SIDES[side] if prompts.get(name)), fallback)


def _transformer_file(spec: ModelSpec, gives_tokens: bool) -> Json:
    if len(spec.towers) == 2:
        methods = {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        }
    else:
        modality = "text" if spec.towers == ("text",) else "image"
        output = "last_hidden_state" if gives_tokens else "pooler_output"
        methods = {modality: {"method": "forward", "method_output_name": output}}
    content: Json = {
        "transformer_task": "feature-extraction",
        "modality_config": methods,
        "module_output_name": "token_embeddings" if gives_tokens else "sentence_embedding",
    }
    if spec.max_length is not None:
        content |= {"max_seq_length": spec.max_length, "do_lower_case": spec.lower_case}
    calls: Json = {}
    if spec.pad_to is not None:
        calls["text"] = {"padding": "max_length", "max_length": spec.pad_to}
    if spec.max_num_patches is not None:
        calls["image"] = {"max_num_patches": spec.max_num_patches}
    return content | {"processing_kwargs": calls} if calls else content
