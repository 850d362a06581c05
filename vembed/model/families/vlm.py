"""Vision-language models: one language model reads texts and images, and its last token is the embedding.

`qwen3_vl` is Qwen3-VL-Embedding, which was trained to embed. `vlm_generic` is every generative vision-language model:
used with its own chat template, it becomes an embedding model by training.
"""

import unicodedata
from pathlib import PurePath

from vembed.errors import ModelError
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import refuse_layers, supported_sentence_folder
from vembed.model.folder.facts import ModelFacts
from vembed.model.folder.sentence_transformers import SentenceFolder
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec

DEFAULT_INSTRUCTION = "Represent the user's input."

# An image token of Qwen3-VL stands for 32 x 32 pixels: patches of 16 x 16, merged two by two.
_TOKEN_PIXELS = 32 * 32
_QWEN3_MIN_PIXELS = 4 * _TOKEN_PIXELS
_QWEN3_MAX_PIXELS = 1800 * _TOKEN_PIXELS
_QWEN3_MAX_LENGTH = 8192

_EMBEDDERS = ("qwen3-vl-embedding-2b", "qwen3-vl-embedding-8b")
_PROCESSOR_KEYS = frozenset({"max_pixels", "min_pixels"})
_OWN_CODE_ENDINGS = ("ForConditionalGeneration", "ForCausalLM", "ForVision2Seq")


def instruction(prompt: str) -> str:
    """An instruction as Qwen3-VL-Embedding was trained with: it ends in a punctuation mark.

    >>> instruction(" Find the product ")
    'Find the product.'
    """
    prompt = prompt.strip()
    return prompt if not prompt or unicodedata.category(prompt[-1]).startswith("P") else prompt + "."


def _describe_generic(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a generative model, or of an embedding model by its sentence-transformers files."""
    sentence = supported_sentence_folder(facts)
    refuse_layers(facts, "vlm_generic")
    limit = _text_limit(facts)
    spec = ModelSpec(
        family="vlm_generic",
        preset="vlm",
        towers=("text", "vision"),
        pooling={"text": architecture.pooling},
        max_length=limit,
        text_limit=limit,
    )
    if sentence is None:
        return spec
    update = {
        "preset": "qwen3",
        "pooling": {"text": sentence.pooling or architecture.pooling},
        "normalize": sentence.normalize,
        "similarity": "dot" if sentence.similarity == "dot" else "cosine",
        "max_length": min((length for length in (sentence.max_length, limit) if length), default=None),
        "query_prompt": sentence.query_prompt or "",
        "document_prompt": sentence.document_prompt or "",
        "other_prompts": dict(sentence.other_prompts),
        "starts_answer": _starts_answer(facts, sentence),
    }
    return spec.model_copy(update=update)


def _describe_qwen3(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec by the model card; instructions by the sentence-transformers files, if they name any."""
    sentence, limit = facts.sentence, _text_limit(facts)
    return ModelSpec(
        family="qwen3_vl",
        preset="qwen3",
        towers=("text", "vision"),
        pooling={"text": architecture.pooling},
        max_length=min(_QWEN3_MAX_LENGTH, limit or _QWEN3_MAX_LENGTH),
        text_limit=limit,
        min_pixels=_QWEN3_MIN_PIXELS,
        max_pixels=_QWEN3_MAX_PIXELS,
        query_prompt=(sentence.query_prompt if sentence else None) or DEFAULT_INSTRUCTION,
        document_prompt=(sentence.document_prompt if sentence else None) or DEFAULT_INSTRUCTION,
    )


def _text_limit(facts: ModelFacts) -> int | None:
    limit = (facts.config.get("text_config") or facts.config).get("max_position_embeddings")
    return None if limit is None else int(limit)


def _claim_qwen3(facts: ModelFacts) -> str | None:
    """By its name, since its config.json is Qwen3-VL's; in the hub's cache a parent folder has the name."""
    for name in (facts.name, str(facts.config.get("_name_or_path", ""))):
        parts = PurePath(name.lower()).parts
        cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
        if facts.model_type in QWEN3_VL.architectures and any(part in _EMBEDDERS for part in (*parts[-1:], *cached)):
            return f"it is called {name}"
    return None


def _starts_answer(facts: ModelFacts, sentence: SentenceFolder) -> bool:
    """add_generation_prompt in the sentence-transformers files.

    Raises ModelError if these use no chat template, or other options of the processor.
    """
    file = facts.model_folder / "sentence_bert_config.json"
    if "message" not in sentence.modalities:
        raise ModelError(
            f"{file} reads texts without the chat template (modality_config has no message), which is not supported;"
            " take modules.json out of the folder to use the model by its chat template"
        )
    options = {f"{key}.{name}": value for key, given in sentence.processing.items() for name, value in given.items()}
    starts = bool(options.pop("chat_template.add_generation_prompt", False))
    if options:
        raise ModelError(f"{file} sets {', '.join(sorted(options))} in processing_kwargs, which is not supported")
    return starts


def _claim_generic(facts: ModelFacts) -> str | None:
    if facts.model_type in VLM_GENERIC.architectures:
        return f"config.json says {facts.model_type}"
    named = facts.config.get("architectures") or [""]
    sees = any(key in facts.config for key in ("vision_config", "mm_vision_tower"))
    if facts.has_own_code and sees and str(named[0]).endswith(_OWN_CODE_ENDINGS):
        return f"config.json names {named[0]}, whose code comes with it, and a vision tower"
    return None


def _check(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    problems = []
    if settings.image_size is not None:
        problems.append(
            f"image_size: the processor of a {spec.family} model sizes pictures; max_pixels bounds those that keep"
            " their shape"
        )
    if settings.pooling == "pooler":
        problems.append(f"pooling 'pooler': a {spec.family} model has no pooling layer; use last or mean")
    fewest, most = settings.min_pixels or spec.min_pixels, settings.max_pixels or spec.max_pixels
    if fewest is not None and most is not None and fewest > most:
        problems.append(f"min_pixels {fewest} is more than max_pixels {most}")
    return problems


_LAST = Architecture("last")

VLM_GENERIC = Family(
    name="vlm_generic",
    preset="vlm",
    towers=("text", "vision"),
    model="vembed.model.backbones.vlm_generic:VlmModel",
    processor="vembed.model.processors.vlm:VlmProcessor",
    describe=_describe_generic,
    architectures={
        "gemma3": _LAST,
        "idefics3": _LAST,
        "internvl": _LAST,
        "llava": _LAST,
        "llava_next": _LAST,
        "llava_onevision": _LAST,
        "paligemma": _LAST,
        "qwen2_vl": _LAST,
        "qwen2_5_vl": _LAST,
        "qwen3_vl": _LAST,
        "qwen3_vl_moe": _LAST,
        "smolvlm": _LAST,
    },
    own_code=_LAST,
    claim=_claim_generic,
    keys=_PROCESSOR_KEYS,
    check=_check,
    aliases=("vlm", "qwen-vl"),
)

QWEN3_VL = Family(
    name="qwen3_vl",
    preset="qwen3",
    towers=("text", "vision"),
    model="vembed.model.backbones.qwen3:Qwen3VLEmbeddingModel",
    processor="vembed.model.processors.qwen3_vl:Qwen3VLEmbeddingProcessor",
    describe=_describe_qwen3,
    architectures={"qwen3_vl": _LAST, "qwen3_vl_moe": Architecture("last", tested=False)},
    claim=_claim_qwen3,
    keys=_PROCESSOR_KEYS,
    check=_check,
    model_names={"qwen3_vl": "Qwen/Qwen3-VL-Embedding-2B"},
)
