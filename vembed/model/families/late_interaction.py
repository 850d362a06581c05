"""Late interaction: a vector per token, scored by MaxSim."""

from vembed.model.facts import Json, ModelFacts
from vembed.model.families.family import Architecture, Family
from vembed.model.late_folder import LateFolder
from vembed.model.settings import ModelSettings
from vembed.model.spec import LateInteraction, ModelSpec

# The token that stands for a document when topk_tokens asks which are nearest to it: of a causal language model, and
# of ColPali, whose first token is part of the picture, the last.
_NATIVE = {
    "colmodernvbert": Architecture("cls"),
    "colpali": Architecture("last"),
    "colqwen2": Architecture("last"),
}


def _describe(facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a model that transformers has a class of its own for."""
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
        late=LateInteraction(
            native=True,
            architecture=facts.model_type,
            protected_tokens=found.protected_tokens,
            skipped_words=found.skipped_words,
            normalizes_pools=found.normalizes_pools,
        ),
    )


def _text_config(config: Json) -> Json:
    vlm: Json = config.get("vlm_config") or {}
    return dict(vlm.get("text_config") or vlm)


def _claim(facts: ModelFacts) -> str | None:
    return f"config.json says {facts.model_type}" if facts.model_type in _NATIVE else None


def _check(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Problems of settings with what the checkpoint is."""
    late = spec.late
    assert late is not None
    problems = []
    if settings.pooling not in (None, "cls", "last"):
        problems.append(
            f"pooling {settings.pooling!r}: a late_interaction model keeps a vector per token; `cls` or `last` say"
            " which token topk_tokens compares the others with"
        )
    if settings.num_query_tokens is not None and late.native:
        problems.append(f"num_query_tokens: {late.architecture} adds its own ten tokens to every query")
    if settings.image_size is not None and late.native:
        hint = "; max_pixels limits it" if late.architecture == "colqwen2" else ""
        problems.append(f"image_size: {late.architecture} reads pictures at the size of its checkpoint{hint}")
    if settings.max_pixels is not None and late.architecture != "colqwen2":
        problems.append(f"max_pixels: {late.architecture} does not read pictures at their native resolution")
    return problems


LATE_INTERACTION = Family(
    name="late_interaction",
    preset="colpali",
    towers=("text", "vision"),
    model="vembed.model.backbones.late_interaction:LateRetrievalModel",
    processor="vembed.model.processors.late_retrieval:LateRetrievalProcessor",
    describe=_describe,
    architectures=_NATIVE,
    claim=_claim,
    keys=frozenset(
        {
            "distance_threshold",
            "document_tokens",
            "mask_prompts",
            "max_pixels",
            "num_query_tokens",
            "pool_factor",
            "topk_tokens",
        }
    ),
    check=_check,
    aliases=("colbert", "colmodernvbert", "colpali", "colqwen", "colqwen2"),
    model_names={
        "colmodernvbert": "ModernVBERT/colmodernvbert-merged",
        "colpali": "vidore/colpali-v1.3-hf",
        "colqwen2": "vidore/colqwen2-v1.0-hf",
    },
)
