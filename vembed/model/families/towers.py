"""Specs of text encoders, vision encoders and dual encoders from their JSON files, and checks of their settings."""

from typing import Literal

from vembed.errors import ModelError
from vembed.model.families.family import Architecture
from vembed.model.folder.facts import ModelFacts
from vembed.model.folder.find import Json, read_table
from vembed.model.folder.sentence_transformers import SentenceFolder
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec

_NO_LIMIT = 1_000_000  # a tokenizer without a limit has a model_max_length above it
PROCESSOR = "vembed.model.processors.auto:TowerProcessor"
_NAFLEX_PATCHES = 256  # the image processor's default


def describe_text(family: str, facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a text encoder: from its sentence-transformers files, else its architecture's defaults."""
    sentence = supported_sentence_folder(facts)
    own = (sentence.max_length if sentence else None) or facts.tokenizer.get("model_max_length")
    limit = text_limit(facts, architecture)
    return ModelSpec(
        family=family,
        preset="text",
        towers=("text",),
        pooling={"text": (sentence.pooling if sentence else None) or architecture.pooling},
        pool_prompt=sentence.pool_prompt if sentence else True,
        layers=sentence.layers if sentence else (),
        normalize=sentence.normalize if sentence else True,
        similarity="dot" if sentence and sentence.similarity == "dot" else "cosine",
        max_length=min((int(length) for length in (own, limit) if length and length < _NO_LIMIT), default=None),
        text_limit=limit,
        padding_side=_padding_side(facts) if architecture.causal else "right",
        lower_case=sentence.lower_case if sentence else False,
        query_prompt=(sentence.query_prompt if sentence else None) or "",
        document_prompt=(sentence.document_prompt if sentence else None) or "",
        other_prompts=dict(sentence.other_prompts) if sentence else {},
    )


def describe_vision(family: str, facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a vision encoder."""
    sentence = supported_sentence_folder(facts)
    refuse_layers(facts, family)
    return ModelSpec(
        family=family,
        preset="dino",
        towers=("vision",),
        pooling={"vision": (sentence.pooling if sentence else None) or architecture.pooling},
        normalize=sentence.normalize if sentence else True,
        similarity="dot" if sentence and sentence.similarity == "dot" else "cosine",
    )


def describe_dual(family: str, facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a text and a vision tower that were trained together; always normalised."""
    spec = describe_text(family, facts, architecture)
    refuse_layers(facts, family)
    towers: tuple[Tower, ...] = ("text", "vision")
    pooling = dict.fromkeys(towers, architecture.pooling)
    return spec.model_copy(update={"preset": family, "towers": towers, "pooling": pooling, "normalize": True})


def supported_sentence_folder(facts: ModelFacts) -> SentenceFolder | None:
    """The settings in sentence-transformers' files, None without any. Raises ModelError if they are not supported."""
    if facts.sentence is not None and facts.sentence.unsupported is not None:
        raise ModelError(facts.sentence.unsupported)
    return facts.sentence


def refuse_layers(facts: ModelFacts, family: str) -> None:
    """Raise ModelError for a sentence-transformers folder with layers beside pooling and normalisation."""
    if facts.sentence is not None and (facts.sentence.layers or not facts.sentence.pool_prompt):
        path = facts.sentence.layers[0].path if facts.sentence.layers else "the pooling without the prompt"
        raise ModelError(f"{facts.folder / 'modules.json'}: {path} is for text models; this is a {family} model")


def _padding_side(facts: ModelFacts) -> Literal["left", "right"]:
    """The padding side that a language model's files set, else right; embeddings are the same with either."""
    side = (facts.sentence.padding_side if facts.sentence else None) or facts.tokenizer.get("padding_side")
    return "left" if side == "left" else "right"


def text_limit(facts: ModelFacts, architecture: Architecture) -> int | None:
    """The most tokens of a text that the model can read, special tokens included; None if its files set no limit."""
    config = facts.config.get("text_config") or facts.config
    positions = config.get("max_position_embeddings") or architecture.max_positions
    if positions is None or not architecture.offset_positions:
        return positions
    return int(positions) - int(config.get("pad_token_id", 1) or 0) - 1


def check_pooling(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """A message if `pooling` is set for a model whose code pools by itself."""
    pooling = next(iter(spec.pooling.values()))
    if settings.pooling in (None, pooling) or pooling != "own":
        return []
    return [f"pooling {settings.pooling!r}: a {spec.family} model of this kind pools by its own code"]


def num_patches(facts: ModelFacts) -> int:
    """max_num_patches of the folder's image processor (SigLIP 2 NaFlex)."""
    processor: Json = read_table(facts.model_folder / "processor_config.json") or {}
    images: Json = processor.get("image_processor") or read_table(facts.model_folder / "preprocessor_config.json") or {}
    return int(images.get("max_num_patches", _NAFLEX_PATCHES))


def check_patches(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Messages if image_size is set for a model with max_num_patches, or the other way round."""
    problems = []
    if settings.max_num_patches is not None and spec.max_num_patches is None:
        problems.append("max_num_patches: this model reads pictures of one size; only SigLIP 2 NaFlex reads patches")
    if settings.image_size is not None and spec.max_num_patches is not None:
        problems.append("image_size: a NaFlex model keeps the shape of a picture; set max_num_patches")
    return problems
