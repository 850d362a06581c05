"""Vision-language models: one language model reads texts and images, and its last token is the embedding.

`qwen3_vl` is Qwen3-VL-Embedding, which was trained to embed. `vlm_generic` is every other model that answers questions
about pictures: used by its own chat template, it becomes an embedder by training.
"""

import unicodedata
from pathlib import PurePath

from vembed.model.facts import ModelFacts
from vembed.model.families.family import Architecture, Family
from vembed.model.families.towers import refuse_layers, sentence_of
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec

DEFAULT_INSTRUCTION = "Represent the user's input."

# A pixel of Qwen3-VL's language model is 32 x 32 pixels of the image: patches of 16, merged two by two.
_TOKEN_PIXELS = 32 * 32
_QWEN3_MIN_PIXELS = 4 * _TOKEN_PIXELS
_QWEN3_MAX_PIXELS = 1800 * _TOKEN_PIXELS
_QWEN3_MAX_LENGTH = 8192

_EMBEDDER = "qwen3-vl-embedding"  # Qwen's own are Qwen3-VL-Embedding-2B and -8B; tuned ones keep the name
_PROCESSOR_KEYS = frozenset({"max_pixels", "min_pixels"})
_OWN_CODE_ENDINGS = ("ForConditionalGeneration", "ForCausalLM", "ForVision2Seq")


def instruction(prompt: str) -> str:
    """An instruction as Qwen3-VL-Embedding was trained with: it ends in a punctuation mark.

    >>> instruction(" Find the product ")
    'Find the product.'
    """
    prompt = prompt.strip()
    return prompt if not prompt or unicodedata.category(prompt[-1]).startswith("P") else prompt + "."


def _describe(family: str, preset: str, facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    sentence = sentence_of(facts)
    refuse_layers(facts, family)
    limit = (facts.config.get("text_config") or facts.config).get("max_position_embeddings")
    asked = sentence.max_length if sentence else None
    return ModelSpec(
        family=family,
        preset=preset,
        towers=("text", "vision"),
        pooling={"text": (sentence.pooling if sentence else None) or architecture.pooling},
        normalize=sentence.normalize if sentence else True,
        similarity="dot" if sentence and sentence.similarity == "dot" else "cosine",
        max_length=min((length for length in (asked, limit) if length), default=None),
        text_limit=limit,
        query_prompt=(sentence.query_prompt if sentence else None) or "",
        document_prompt=(sentence.document_prompt if sentence else None) or "",
        other_prompts=dict(sentence.other_prompts) if sentence else {},
    )


def _describe_generic(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    return _describe("vlm_generic", "vlm", facts, architecture)


def _describe_qwen3(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    spec = _describe("qwen3_vl", "qwen3", facts, architecture)
    update = {
        "query_prompt": spec.query_prompt or DEFAULT_INSTRUCTION,
        "document_prompt": spec.document_prompt or DEFAULT_INSTRUCTION,
        "max_length": min(_QWEN3_MAX_LENGTH, spec.max_length or _QWEN3_MAX_LENGTH),
        "min_pixels": _QWEN3_MIN_PIXELS,
        "max_pixels": _QWEN3_MAX_PIXELS,
    }
    return spec.model_copy(update=update)


def _claim_qwen3(facts: ModelFacts) -> str | None:
    """config.json cannot tell an embedder from Qwen3-VL: its name does, or that its files say how it is pooled."""
    if facts.model_type not in QWEN3_VL.architectures:
        return None
    for name in (facts.name, str(facts.config.get("_name_or_path", ""))):
        parts = PurePath(name.lower()).parts
        cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
        if any(part.startswith(_EMBEDDER) for part in (*parts[-1:], *cached)):
            return f"it is called {name}"
    if facts.sentence is not None and facts.sentence.pooling == "last":
        return f"config.json says {facts.model_type}, and 1_Pooling that it embeds by its last token"
    return None


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
