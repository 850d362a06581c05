"""Recipes: pooling and prompts of well-known text embedding models, by their model cards.

To transformers, BGE and E5 are BERTs, and their sentence-transformers files name no prompts. A folder is recognised by
the hub id that it was loaded by, by its path in the hub's cache, by its name if that is a repository's, or, without
sentence-transformers files, by `_name_or_path` in config.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vembed.errors import ModelError
from vembed.model.folder.facts import ModelFacts
from vembed.model.spec import ModelSpec, Pooling

_BGE_QUERY = "Represent this sentence for searching relevant passages: "
_BGE_QUERY_ZH = "为这个句子生成表示以用于检索相关文章："
_TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@dataclass(frozen=True)
class Recipe:
    """How the models of a series are used. series: its name in `encoder_mode`. types: their `model_type`s.

    pads_left: left padding, unless the tokenizer's files set a side.
    needs_layers: dense layers follow the pooling, which only the sentence-transformers folder has.
    """

    series: str
    types: tuple[str, ...]
    pooling: Pooling
    hub_ids: tuple[str, ...]
    query_prompt: str = ""
    document_prompt: str = ""
    pads_left: bool = False
    needs_layers: bool = False


def _named(pattern: str, *sizes: str) -> tuple[str, ...]:
    return tuple(pattern.format(size) for size in sizes)


_SIZES = ("small", "base", "large")
# Of several recipes of a series, `encoder_mode` selects the first one for the folder's model_type.
RECIPES = (
    Recipe(
        "bge",
        ("bert",),
        "cls",
        _named("BAAI/bge-{}-en-v1.5", *_SIZES) + _named("BAAI/bge-{}-en", *_SIZES),
        query_prompt=_BGE_QUERY,
    ),
    Recipe(
        "bge",
        ("bert",),
        "cls",
        _named("BAAI/bge-{}-zh-v1.5", *_SIZES) + _named("BAAI/bge-{}-zh", *_SIZES),
        query_prompt=_BGE_QUERY_ZH,
    ),
    Recipe("bge", ("xlm-roberta",), "cls", ("BAAI/bge-m3",)),
    Recipe(
        "e5",
        ("bert", "xlm-roberta"),
        "mean",
        _named("intfloat/e5-{}-v2", *_SIZES)
        + _named("intfloat/e5-{}", *_SIZES)
        + _named("intfloat/multilingual-e5-{}", *_SIZES),
        query_prompt="query: ",
        document_prompt="passage: ",
    ),
    Recipe(
        "e5_instruct",
        ("xlm-roberta",),
        "mean",
        ("intfloat/multilingual-e5-large-instruct",),
        query_prompt=f"{_TASK} ",
    ),
    Recipe("e5_instruct", ("mistral",), "last", ("intfloat/e5-mistral-7b-instruct",), query_prompt=f"{_TASK} "),
    Recipe("gte", ("bert",), "mean", _named("thenlper/gte-{}", *_SIZES)),
    Recipe(
        "gte",
        ("new", "gte", "modernbert"),
        "cls",
        (
            "Alibaba-NLP/gte-base-en-v1.5",
            "Alibaba-NLP/gte-large-en-v1.5",
            "Alibaba-NLP/gte-multilingual-base",
            "Alibaba-NLP/gte-modernbert-base",
        ),
    ),
    Recipe(
        "nomic",
        ("nomic_bert", "modernbert"),
        "mean",
        ("nomic-ai/nomic-embed-text-v1", "nomic-ai/nomic-embed-text-v1.5", "nomic-ai/modernbert-embed-base"),
        query_prompt="search_query: ",
        document_prompt="search_document: ",
    ),
    Recipe(
        "arctic",
        ("bert",),
        "cls",
        _named("Snowflake/snowflake-arctic-embed-{}", "xs", "s", "m", "l", "m-v1.5"),
        query_prompt=_BGE_QUERY,
    ),
    Recipe("arctic", ("xlm-roberta",), "cls", ("Snowflake/snowflake-arctic-embed-l-v2.0",), query_prompt="query: "),
    Recipe("mxbai", ("bert",), "cls", ("mixedbread-ai/mxbai-embed-large-v1",), query_prompt=_BGE_QUERY),
    Recipe(
        "qwen3_embedding",
        ("qwen3",),
        "last",
        _named("Qwen/Qwen3-Embedding-{}", "0.6B", "4B", "8B"),
        query_prompt=_TASK,
        pads_left=True,
    ),
    Recipe(
        "embeddinggemma",
        ("gemma3_text",),
        "mean",
        ("google/embeddinggemma-300m",),
        query_prompt="task: search result | query: ",
        document_prompt="title: none | text: ",
        needs_layers=True,
    ),
)
SERIES = tuple(dict.fromkeys(recipe.series for recipe in RECIPES))

_BY_HUB_ID = {hub_id.lower(): recipe for recipe in RECIPES for hub_id in recipe.hub_ids}
_BY_NAME = {hub_id.rsplit("/", 1)[-1]: recipe for hub_id, recipe in _BY_HUB_ID.items()}


@dataclass(frozen=True)
class RecipeMatch:
    """A recipe, and what it was recognised by, in words."""

    recipe: Recipe
    source: str


def match_recipe(facts: ModelFacts) -> RecipeMatch | None:
    """The recipe of a model that is recognised, or of the series that `encoder_mode` names; None if there is neither.

    Raises ModelError if that series has no model of this `model_type`.
    """
    found = next((known for known in _recipe_matches(facts) if facts.model_type in known.recipe.types), None)
    if facts.mode not in SERIES or (found is not None and found.recipe.series == facts.mode):
        return found
    fitting = [recipe for recipe in RECIPES if recipe.series == facts.mode]
    wanted = next((recipe for recipe in fitting if facts.model_type in recipe.types), None)
    if wanted is None:
        able = ", ".join(dict.fromkeys(one for recipe in fitting for one in recipe.types))
        raise ModelError(
            f"encoder_mode {facts.mode!r} does not fit: those models are of type {able}; this one is {facts.model_type}"
        )
    return RecipeMatch(wanted, "encoder_mode")


def with_recipe(spec: ModelSpec, facts: ModelFacts, known: RecipeMatch) -> ModelSpec:
    """The spec with the recipe's pooling, prompts and padding where the files set none.

    Raises ModelError if the files contradict a recipe that `encoder_mode` names, or lack its dense layers.
    """
    recipe, sentence = known.recipe, facts.sentence
    own = sentence.pooling if sentence else None
    if own not in (None, recipe.pooling) and known.source == "encoder_mode":
        raise ModelError(
            f"encoder_mode {facts.mode!r} does not fit: {recipe.series} pools by {recipe.pooling}, and the folder's"
            f" 1_Pooling says {own}; to pool otherwise, set pooling"
        )
    if recipe.needs_layers and sentence is None:
        raise ModelError(
            f"{facts.folder}: {recipe.series} sends the pooled vector through Dense layers, and they are not here: copy"
            " modules.json and the folders that it names as well"
        )
    update: dict[str, object] = {"recipe": recipe.series}
    if own is None:
        update["pooling"] = {"text": recipe.pooling}
    if recipe.pads_left and "padding_side" not in facts.tokenizer:
        update["padding_side"] = "left"
    if names_no_prompt(facts):
        update |= {"query_prompt": recipe.query_prompt, "document_prompt": recipe.document_prompt}
    return spec.model_copy(update=update)


def names_no_prompt(facts: ModelFacts) -> bool:
    """True if the files name no prompt for queries or documents."""
    sentence = facts.sentence
    return sentence is None or (sentence.query_prompt is None and sentence.document_prompt is None)


def describe_match(known: RecipeMatch, facts: ModelFacts) -> str:
    """The recipe and what it was recognised by, for the printed reason."""
    recipe = known.recipe
    prompts = {"queries": recipe.query_prompt, "documents": recipe.document_prompt}
    used = [f"{prompt!r} before {side}" for side, prompt in prompts.items() if prompt]
    added = f", so with {' and '.join(used)}" if used and names_no_prompt(facts) else ""
    return f"{known.source} makes it a model of {recipe.series}{added}"


def _recipe_matches(facts: ModelFacts) -> Iterator[RecipeMatch]:
    """The recipes of all names by which a folder is recognised, the most certain first."""
    if facts.name.lower() in _BY_HUB_ID:
        yield RecipeMatch(_BY_HUB_ID[facts.name.lower()], f"the hub id {facts.name}")
    for part in facts.folder.parts:
        cached = part.removeprefix("models--").replace("--", "/")
        if part.startswith("models--") and cached.lower() in _BY_HUB_ID:
            yield RecipeMatch(_BY_HUB_ID[cached.lower()], f"its place in the hub's cache ({cached})")
    if facts.folder.name.lower() in _BY_NAME:
        yield RecipeMatch(_BY_NAME[facts.folder.name.lower()], f"the folder's name {facts.folder.name}")
    origin = str(facts.config.get("_name_or_path", ""))
    if facts.sentence is None and origin.lower() in _BY_HUB_ID:
        yield RecipeMatch(_BY_HUB_ID[origin.lower()], f"_name_or_path in config.json ({origin})")
