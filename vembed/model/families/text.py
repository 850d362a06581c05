"""Text encoders: BERT and its variants, and language models that were trained to embed."""

from vembed.errors import ModelError
from vembed.model.families.family import Architecture, Family
from vembed.model.families.text_recipes import SERIES, describe_match, match_recipe, with_recipe
from vembed.model.families.towers import PROCESSOR, check_pooling, describe_text
from vembed.model.folder.facts import ModelFacts
from vembed.model.settings import ModelSettings
from vembed.model.spec import ModelSpec

_ENCODERS = {
    "albert": Architecture("mean", 512, tested=False),
    "bert": Architecture("mean", 512),
    "camembert": Architecture("mean", 514, offset_positions=True, tested=False),
    "deberta-v2": Architecture("mean", 512, tested=False),
    "distilbert": Architecture("mean", 512),
    "electra": Architecture("mean", 512, tested=False),
    "eurobert": Architecture("mean", tested=False),
    "gte": Architecture("cls"),
    "modernbert": Architecture("mean"),
    "mt5": Architecture("mean", tested=False),
    "mpnet": Architecture("mean", 514, offset_positions=True),
    "new": Architecture("cls"),  # GTE's remote code, before transformers had it as `gte`
    "nomic_bert": Architecture("mean", 8192),
    "roberta": Architecture("mean", 514, offset_positions=True),
    "t5": Architecture("mean"),
    "umt5": Architecture("mean", tested=False),
    "xlm-roberta": Architecture("mean", 514, offset_positions=True),
    "xlm-roberta-xl": Architecture("mean", 514, offset_positions=True, tested=False),
}
# Causal attention, unless config.json turns it off, as EmbeddingGemma's does.
_DECODERS = {
    "gemma": Architecture("last", causal=True, tested=False),
    "gemma2": Architecture("last", causal=True, tested=False),
    "gemma3_text": Architecture("last", causal=True),
    "llama": Architecture("last", causal=True),
    "mistral": Architecture("last", causal=True),
    "phi3": Architecture("last", causal=True, tested=False),
    "qwen2": Architecture("last", causal=True),
    "qwen3": Architecture("last", causal=True),
}


def _claim(facts: ModelFacts) -> str | None:
    """Encoders by model_type; language models with modules.json, a recipe, or bidirectional attention."""
    says = f"config.json says {facts.model_type}"
    if facts.model_type in _ENCODERS:
        return says
    if facts.model_type not in _DECODERS:
        return None
    if facts.sentence is not None:
        return f"{says}, and modules.json that it embeds"
    if _is_bidirectional(facts):
        return f"{says}, and that it attends in both directions"
    return says if match_recipe(facts) is not None else None


def _is_bidirectional(facts: ModelFacts) -> bool:
    """True if config.json turns causal attention off, which only embedding models do."""
    return facts.config.get("use_bidirectional_attention") is True or facts.config.get("is_causal") is False


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    if facts.mode == "modernbert" and facts.model_type != "modernbert":
        raise ModelError(f"encoder_mode 'modernbert' does not fit: this is a {facts.model_type} model")
    known = match_recipe(facts)
    spec = describe_text("text", facts, architecture)
    if _is_bidirectional(facts) and facts.sentence is None:
        spec = spec.model_copy(update={"pooling": {"text": "mean"}})
    return spec if known is None else with_recipe(spec, facts, known)


def _note(facts: ModelFacts) -> str | None:
    known = match_recipe(facts)
    return None if known is None else describe_match(known, facts)


def _check(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Messages for `encoder_mode` with another series than the checkpoint's, and for unsupported poolings."""
    mode = settings.encoder_mode
    problems = check_pooling(spec, settings)
    if mode in SERIES and spec.recipe != mode:
        own = f"was tuned as a model of {spec.recipe}" if spec.recipe else "says itself how it is used"
        problems.append(f"encoder_mode {mode!r} does not fit: this checkpoint {own}")
    return problems


TEXT = Family(
    name="text",
    preset="text",
    towers=("text",),
    model="vembed.model.backbones.auto:TextModel",
    processor=PROCESSOR,
    describe=_describe,
    note=_note,
    architectures=_ENCODERS | _DECODERS,
    claim=_claim,
    own_code=Architecture("mean", tested=False),
    check=_check,
    aliases=("bert", "modernbert", *SERIES),
    model_names={
        "arctic": "Snowflake/snowflake-arctic-embed-m-v1.5",
        "bert": "google-bert/bert-base-uncased",
        "bge": "BAAI/bge-base-en-v1.5",
        "bge_m3": "BAAI/bge-m3",
        "distilbert": "distilbert/distilbert-base-uncased",
        "e5": "intfloat/e5-base-v2",
        "e5_instruct": "intfloat/multilingual-e5-large-instruct",
        "embeddinggemma": "google/embeddinggemma-300m",
        "gte": "thenlper/gte-base",
        "minilm": "sentence-transformers/all-MiniLM-L6-v2",
        "modernbert": "answerdotai/ModernBERT-base",
        "mpnet": "sentence-transformers/all-mpnet-base-v2",
        "multilingual_e5": "intfloat/multilingual-e5-base",
        "nomic": "nomic-ai/nomic-embed-text-v1.5",
        "qwen3_embedding": "Qwen/Qwen3-Embedding-0.6B",
        "roberta": "FacebookAI/roberta-base",
        "xlm_roberta": "FacebookAI/xlm-roberta-base",
    },
)
