"""How models of one or two transformers towers are described: texts by a tokenizer, images at one size."""

from typing import Literal

from vembed.errors import ModelError
from vembed.model.families.family import Architecture
from vembed.model.folder.facts import ModelFacts
from vembed.model.folder.find import Json, read_json
from vembed.model.folder.sentence_transformers import SentenceFolder
from vembed.model.settings import ModelSettings, Tower
from vembed.model.spec import ModelSpec

_NO_LIMIT = 1_000_000  # a tokenizer without a limit names a number beyond all texts
PROCESSOR = "vembed.model.processors.auto:TowerProcessor"
_NAFLEX_PATCHES = 256  # what the image processor takes where its file does not say


def describe_text(family: str, facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a text encoder: what its sentence-transformers files say, else what its architecture does."""
    sentence = sentence_of(facts)
    asked = (sentence.max_length if sentence else None) or facts.tokenizer.get("model_max_length")
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
        max_length=min((int(length) for length in (asked, limit) if length and length < _NO_LIMIT), default=None),
        text_limit=limit,
        padding_side=_padding_side(facts) if architecture.causal else "right",
        lower_case=sentence.lower_case if sentence else False,
        query_prompt=(sentence.query_prompt if sentence else None) or "",
        document_prompt=(sentence.document_prompt if sentence else None) or "",
        other_prompts=dict(sentence.other_prompts) if sentence else {},
    )


def describe_vision(family: str, facts: ModelFacts, architecture: Architecture) -> ModelSpec:
    """The spec of a vision encoder."""
    sentence = sentence_of(facts)
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
    """The spec of a text and a vision tower that were trained together, normalised whatever else its files say."""
    spec = describe_text(family, facts, architecture)
    refuse_layers(facts, family)
    towers: tuple[Tower, ...] = ("text", "vision")
    pooling = dict.fromkeys(towers, architecture.pooling)
    return spec.model_copy(update={"preset": family, "towers": towers, "pooling": pooling, "normalize": True})


def sentence_of(facts: ModelFacts) -> SentenceFolder | None:
    """What the sentence-transformers files say. Raises ModelError when a tower and its pooling cannot express it."""
    if facts.sentence is not None and facts.sentence.refusal is not None:
        raise ModelError(facts.sentence.refusal)
    return facts.sentence


def refuse_layers(facts: ModelFacts, family: str) -> None:
    """Raise ModelError for a folder of sentence-transformers with more after its tower than pooling and normalising."""
    if facts.sentence is not None and (facts.sentence.layers or not facts.sentence.pool_prompt):
        path = facts.sentence.layers[0].path if facts.sentence.layers else "the pooling without the prompt"
        raise ModelError(f"{facts.folder / 'modules.json'}: {path} is for text models; this is a {family} model")


def _padding_side(facts: ModelFacts) -> Literal["left", "right"]:
    """The side that a language model's files name; the embedding is the same under either."""
    asked = (facts.sentence.padding_side if facts.sentence else None) or facts.tokenizer.get("padding_side")
    return "left" if asked == "left" else "right"


def text_limit(facts: ModelFacts, architecture: Architecture) -> int | None:
    """The most tokens that the text tower reads, None when its files set no limit."""
    config = facts.config.get("text_config") or facts.config
    positions = config.get("max_position_embeddings") or architecture.max_positions
    if positions is None or not architecture.offset_positions:
        return positions
    return int(positions) - int(config.get("pad_token_id", 1) or 0) - 1


def check_pooling(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """A problem when `pooling` is set for a model that pools by its own code."""
    pooling = next(iter(spec.pooling.values()))
    if settings.pooling in (None, pooling) or pooling != "own":
        return []
    return [f"pooling {settings.pooling!r}: a {spec.family} model of this kind pools by its own code"]


def num_patches(facts: ModelFacts) -> int:
    """Into how many patches the folder's own image processor cuts a picture at most (SigLIP 2 NaFlex)."""
    whole: Json = read_json(facts.model_folder / "processor_config.json") or {}
    images: Json = whole.get("image_processor") or read_json(facts.model_folder / "preprocessor_config.json") or {}
    return int(images.get("max_num_patches", _NAFLEX_PATCHES))


def check_patches(spec: ModelSpec, settings: ModelSettings) -> list[str]:
    """Problems when a size is set for a model that reads patches, or patches for one that reads images of one size."""
    problems = []
    if settings.max_num_patches is not None and spec.max_num_patches is None:
        problems.append("max_num_patches: this model reads pictures of one size; only SigLIP 2 NaFlex reads patches")
    if settings.image_size is not None and spec.max_num_patches is not None:
        problems.append("image_size: a NaFlex model keeps the shape of a picture; set max_num_patches")
    return problems
