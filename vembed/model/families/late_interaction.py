"""Late interaction: a vector per token, scored by MaxSim."""

from dataclasses import replace
from typing import Literal

from vembed.errors import ModelError
from vembed.model.families.family import Architecture, Family
from vembed.model.families.text import TEXT
from vembed.model.families.towers import text_limit
from vembed.model.families.vlm import VLM_GENERIC
from vembed.model.folder.facts import ModelFacts
from vembed.model.folder.find import Json
from vembed.model.folder.multi_vector import LateFolder, is_stanford_colbert, read_stanford_colbert
from vembed.model.settings import ModelSettings
from vembed.model.spec import LateInteraction, LayerSpec, ModelSpec

# pooling: the token that topk_tokens compares all others with. It is the last one of a causal language model, and of
# ColPali, whose first token is an image token.
_NATIVE = {
    "colmodernvbert": Architecture("cls"),
    "colpali": Architecture("last"),
    "colqwen2": Architecture("last"),
}
# Architectures whose token vectors are tested against plain transformers or sentence-transformers.
_COMPARED = ("bert", "llama", "modernbert", "qwen2_vl", "qwen3_vl")
_TEXT = {
    name: replace(architecture, pooling="last" if architecture.pooling == "last" else "cls", tested=name in _COMPARED)
    for name, architecture in TEXT.architectures.items()
}
_VLM = {name: replace(one, tested=name in _COMPARED) for name, one in VLM_GENERIC.architectures.items()}
_QUERY_MARKER, _DOCUMENT_MARKER = "[Q] ", "[D] "
# The kinds or architectures that each alias of the family stands for.
_KINDS_OF_ALIAS = {
    "colbert": ("text",),
    "colmodernvbert": ("colmodernvbert",),
    "colpali": ("colpali", "paligemma"),
    "colqwen": ("vlm", "colqwen2"),
    "colqwen2": ("colqwen2", "qwen2_vl"),
}
_IN_WORDS = {"native": "late-interaction model", "text": "text encoder", "vlm": "vision-language model"}


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    if facts.model_type in _NATIVE:
        return _describe_native(facts, architecture)
    return _describe_vlm(facts, architecture) if facts.model_type in _VLM else _describe_text(facts, architecture)


def _describe_native(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a model with a transformers class for late interaction (ColPali, ColQwen2, ColModernVBERT)."""
    limit = _text_config(facts.config).get("max_position_embeddings")
    sentence = facts.sentence
    found = (sentence.late if sentence else None) or LateFolder()
    return ModelSpec(
        family="late_interaction",
        preset="colpali",
        towers=("text", "vision"),
        pooling={"text": architecture.pooling},
        similarity="dot",
        scoring="maxsim",
        max_length=limit,
        text_limit=limit,
        projection_dim=int(facts.config.get("embedding_dim", 128)),
        query_prompt=(sentence.query_prompt if sentence else None) or "",
        document_prompt=(sentence.document_prompt if sentence else None) or "",
        pool_factor=found.pool_factor,
        late=_late_interaction(found, facts, "native"),
    )


def _describe_text(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a text encoder with a projection of its own, or a new one: a ColBERT."""
    sentence = facts.sentence
    found = sentence.late if sentence else None
    prompts = (sentence.query_prompt, sentence.document_prompt) if sentence else (None, None)
    if is_stanford_colbert(facts.config) and sentence is None:
        found, markers = read_stanford_colbert(facts.folder, int(facts.config["hidden_size"]))
        prompts = (markers["query"], markers["document"])
    if found is None and prompts == (None, None):
        prompts = (_QUERY_MARKER, _DOCUMENT_MARKER)
    found = found or LateFolder()
    layers = _projection_layers(found, facts)
    limit = text_limit(facts, architecture)
    lengths = (limit, sentence.max_length if sentence else None, found.document_limit)
    return ModelSpec(
        family="late_interaction",
        preset="colpali",
        towers=("text",),
        pooling={"text": architecture.pooling},
        layers=layers,
        normalize=found.normalize,
        similarity="dot",
        scoring="maxsim",
        max_length=min((length for length in lengths if length), default=None),
        text_limit=limit,
        lower_case=sentence.lower_case if sentence else False,
        query_prompt=prompts[0] or "",
        document_prompt=prompts[1] or "",
        projection_dim=layers[-1].outputs if layers else None,
        num_query_tokens=found.fill_tokens,
        pool_factor=found.pool_factor,
        late=_late_interaction(found, facts, "text"),
    )


def _describe_vlm(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a vision-language model with a projection of its own, or a new one: a ColQwen."""
    sentence = facts.sentence
    found = sentence.late if sentence else None
    known = found or LateFolder()
    layers = _projection_layers(known, facts)
    _refuse_text_encoder_options(known, facts)
    update = {
        "family": "late_interaction",
        "preset": "colpali",
        "pooling": {"text": architecture.pooling},
        "layers": layers,
        "normalize": known.normalize,
        "similarity": "dot",
        "scoring": "maxsim",
        "query_prompt": (sentence.query_prompt if sentence else None) or "",
        "document_prompt": (sentence.document_prompt if sentence else None) or "",
        "projection_dim": layers[-1].outputs if layers else None,
        "pool_factor": known.pool_factor,
        "mask_prompts": found is None,  # others score the chat template too
        "late": _late_interaction(known, facts, "vlm"),
    }
    return VLM_GENERIC.describe(replace(facts, sentence=None), architecture).model_copy(update=update)


def _refuse_text_encoder_options(found: LateFolder, facts: ModelFacts) -> None:
    """Raise ModelError for options that are supported for text encoders only, or a chat template without an answer."""
    if found.skipped_words or found.query_limit or found.fill_tokens:
        raise ModelError(
            f"{facts.folder}: words that are left out, lengths of queries and mask tokens are for text encoders; this"
            f" is a vision-language model ({facts.model_type})"
        )
    if not found.starts_answer:
        raise ModelError(
            f"{facts.folder}: its chat template is rendered without the beginning of an answer; only folders whose"
            " sentence_bert_config.json sets add_generation_prompt in processing_kwargs are supported"
        )


def _projection_layers(found: LateFolder, facts: ModelFacts) -> tuple[LayerSpec, ...]:
    """The projection's layers; of a model with one vector per item, its dense layers."""
    single = facts.sentence.layers if facts.sentence else ()
    return found.layers or tuple(layer for layer in single if layer.kind == "dense")


def _late_interaction(found: LateFolder, facts: ModelFacts, kind: Literal["native", "text", "vlm"]) -> LateInteraction:
    # The first token of a text encoder is [CLS], a summary of the text: token pooling does not merge it.
    own = found.protected_tokens if found.pool_factor is not None else int(kind == "text")
    return LateInteraction(
        kind=kind,
        architecture=facts.model_type,
        protected_tokens=own,
        skipped_words=found.skipped_words,
        query_limit=found.query_limit,
        attends_to_fill=found.attends_to_fill,
        fill_token=found.fill_token,
        normalizes_pools=found.normalizes_pools,
    )


def _text_config(config: Json) -> Json:
    vlm: Json = config.get("vlm_config") or {}
    return dict(vlm.get("text_config") or vlm)


def _claim(facts: ModelFacts) -> str | None:
    if facts.model_type in _NATIVE:
        return f"config.json says {facts.model_type}"
    if is_stanford_colbert(facts.config):
        return "config.json says HF_ColBERT"
    late = facts.sentence is not None and facts.sentence.late is not None
    return "modules.json describes a vector per token" if late else None


def _check(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Messages for settings that the checkpoint's kind does not support."""
    late = spec.late
    assert late is not None
    problems = _alias_problems(late, settings.encoder_mode)
    if settings.pooling not in (None, "cls", "last"):
        problems.append(
            f"pooling {settings.pooling!r}: a late_interaction model keeps a vector per token; `cls` or `last` say"
            " which token topk_tokens compares the others with"
        )
    if settings.num_query_tokens is not None and late.kind == "native":
        problems.append(f"num_query_tokens: {late.architecture} adds its own ten tokens to every query")
    if settings.num_query_tokens is not None and late.kind != "native":
        problems += _query_problems(spec, late, settings.num_query_tokens)
    if settings.image_size is not None and late.kind == "native":
        hint = "; max_pixels limits it" if late.architecture == "colqwen2" else ""
        problems.append(f"image_size: {late.architecture} reads pictures at the size of its checkpoint{hint}")
    if settings.image_size is not None and late.kind == "vlm":
        problems.append("image_size: a vision-language model keeps the shape of a picture; set max_pixels instead")
    bounds = [key for key in ("min_pixels", "max_pixels") if getattr(settings, key) is not None]
    if bounds and late.kind != "vlm" and late.architecture != "colqwen2":
        problems.append(f"{', '.join(bounds)}: {late.architecture} does not read pictures at their native resolution")
    return problems


def _alias_problems(late: LateInteraction, encoder_mode: str | None) -> list[str]:
    """A message for an alias in `encoder_mode` that stands for another kind of model than this one."""
    fitting = [name for name, meant in _KINDS_OF_ALIAS.items() if late.kind in meant or late.architecture in meant]
    if encoder_mode not in _KINDS_OF_ALIAS or encoder_mode in fitting:
        return []
    return [
        f"encoder_mode {encoder_mode!r} does not fit: this is a {_IN_WORDS[late.kind]} ({late.architecture});"
        f" {' or '.join(fitting)} fits, or late_interaction"
    ]


def _query_problems(spec: ModelSpec, late: LateInteraction, num_query_tokens: int) -> list[str]:
    limits = {"this model reads": spec.text_limit, "this checkpoint cuts queries to": late.query_limit}
    return [
        f"num_query_tokens {num_query_tokens}: {words} at most {limit} tokens"
        for words, limit in limits.items()
        if limit is not None and num_query_tokens > limit
    ]


LATE_INTERACTION = Family(
    name="late_interaction",
    preset="colpali",
    towers=("text", "vision"),
    model="vembed.model.late_interaction.model:LateInteractionModel",
    processor="vembed.model.late_interaction.processor:LateProcessor",
    describe=_describe,
    architectures=_NATIVE | _TEXT | _VLM,
    claim=_claim,
    keys=frozenset(
        {
            "distance_threshold",
            "document_tokens",
            "mask_prompts",
            "max_pixels",
            "min_pixels",
            "num_query_tokens",
            "pool_factor",
            "topk_tokens",
        }
    ),
    check=_check,
    aliases=tuple(_KINDS_OF_ALIAS),
    model_names={
        "colmodernvbert": "ModernVBERT/colmodernvbert-merged",
        "colbert": "colbert-ir/colbertv2.0",
        "colpali": "vidore/colpali-v1.3-hf",
        "colqwen2": "vidore/colqwen2-v1.0-hf",
    },
)
