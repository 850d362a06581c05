"""ModelSpec: how a model reads its inputs and how its vectors are compared. Saved with every checkpoint."""

from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from vembed.model.settings import Tower
from vembed.types import Side

# Of a tower's vectors; several, joined by "+", are put side by side. `pooler`: what the model's class pools by itself;
# `own`: what its code calls its pooled output (CLIP's end-of-text token, SigLIP's head, timm's pooling).
POOLINGS = ("cls", "mean", "last", "max", "mean_sqrt_len", "weighted_mean", "gem", "pooler", "own")
Modality = Literal["text", "image"]

_TOWER_OF: dict[Modality, Tower] = {"text": "text", "image": "vision"}
_MODALITIES_OF_LETTER: dict[str, tuple[Modality, ...]] = {"t": ("text",), "i": ("image",), "m": ("text", "image")}


def known_pooling(pooling: str) -> str:
    """The pooling, if all that it joins are known. Raises ValueError.

    >>> known_pooling("cls+mean")
    'cls+mean'
    """
    modes = pooling.split("+")
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown or (len(modes) > 1 and {"pooler", "own"} & set(modes)):
        raise ValueError(
            f"pooling {pooling!r} is not known; known are {', '.join(POOLINGS)}, the first seven also joined by +"
        )
    return pooling


Pooling = Annotated[str, AfterValidator(known_pooling)]


class LayerSpec(BaseModel):
    """A layer between pooling and embedding, of a folder of sentence-transformers; `path` is its subfolder there.

    dense: activation(linear(vector)), to which `residual` adds the vector itself, projected where the widths differ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "layer_norm", "normalize", "dropout"]
    path: str
    inputs: int = 0
    outputs: int = 0
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False
    probability: float = 0.0


class LateInteraction(BaseModel):
    """What the files of a late-interaction model say about its token vectors, and no setting changes.

    kind: `native` where transformers has a class of its own for the model, which projects and normalises; `text` and
    `vlm` are a text encoder and a vision-language model with a projection. architecture: its `model_type`.
    protected_tokens: first tokens of a document that are never joined. skipped_words: tokens that are left out of
    documents. query_limit: tokens that a query is cut to. attends_to_fill: whether the encoder sees the tokens that a
    query is filled up with. fill_token: which those are, None for the tokenizer's mask token (else its end of text).
    normalizes_pools: whether a pooled vector is brought back to length 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["native", "text", "vlm"]
    architecture: str
    protected_tokens: int = 0
    skipped_words: tuple[str, ...] = ()
    query_limit: int | None = None
    attends_to_fill: bool = False
    fill_token: str | None = None
    normalizes_pools: bool = True


class ModelSpec(BaseModel):
    """One record that training, evaluation, encoding and export all read, so that they cannot drift apart.

    layers follow the pooling of the text tower. pool_prompt: whether the tokens of a prompt take part in the pooling.
    recipe: the line of text models (bge, e5, ...) whose model cards say what the files leave open.
    other_prompts: those that neither side uses, by name, kept for sentence-transformers.
    starts_answer: whether a conversation (of a vision-language model) ends in the beginning of an answer.
    max_length counts tokens, and text_limit is the most that the model can read; pad_to is the fixed text length of
    models that were trained with one (SigLIP); image_size is the side of the square that images become; of images that
    keep their shape, min_pixels and max_pixels bound the size, max_num_patches the patches of NaFlex. None: those of
    the image processor. own_code is the class in the checkpoint's own files that transformers runs, None when it has
    the model itself.

    Of models with a vector per token (scoring "maxsim"): num_query_tokens is what queries are filled up to with mask
    tokens; a document keeps the topk_tokens that are most similar to the token that `pooling` names (cls, last), which
    are then pooled to a pool_factor-th of them, to document_tokens at most, and to what is no further apart than
    distance_threshold. mask_prompts leaves the tokens of prompts out.

    fusion: how the text and the images of one row become one vector.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    family: str
    preset: str
    towers: tuple[Tower, ...]
    pooling: dict[Tower, Pooling]
    pool_prompt: bool = True
    layers: tuple[LayerSpec, ...] = ()
    normalize: bool = True
    similarity: Literal["cosine", "dot"] = "cosine"
    scoring: Literal["single", "maxsim"] = "single"
    padding_side: Literal["right", "left"] = "right"
    max_length: int | None = None
    text_limit: int | None = None
    pad_to: int | None = None
    starts_answer: bool = True
    lower_case: bool = False
    image_size: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_num_patches: int | None = None
    own_code: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    other_prompts: dict[str, str] = {}
    recipe: str | None = None
    projection_head: Literal["linear", "mlp"] | None = None
    projection_dim: int | None = None
    late: LateInteraction | None = None
    num_query_tokens: int | None = None
    topk_tokens: int | None = None
    pool_factor: float | None = None
    distance_threshold: float | None = None
    document_tokens: int | None = None
    mask_prompts: bool = False
    fusion: str = "sum"

    def prompt(self, side: Side) -> str:
        """The text put before every text of that side."""
        return self.query_prompt if side == "query" else self.document_prompt

    @property
    def treats_sides_alike(self) -> bool:
        """Whether an item's embedding is the same on both sides, so that neither need be encoded twice."""
        skips = self.late is not None and bool(self.late.skipped_words or self.late.query_limit)
        return self.query_prompt == self.document_prompt and not (
            skips or self.num_query_tokens or self.reduces_documents
        )

    @property
    def reduces_documents(self) -> bool:
        """Whether documents have fewer vectors than tokens."""
        pools = (self.pool_factor or 1) > 1 or bool(self.document_tokens or self.distance_threshold)
        return pools or bool(self.topk_tokens)

    def can(self, modalities: Iterable[Modality]) -> bool:
        """Whether the model reads all of these.

        >>> spec = ModelSpec(family="text", preset="text", towers=("text",), pooling={"text": "mean"})
        >>> spec.can(["text"]), spec.can(["text", "image"])
        (True, False)
        """
        return all(_TOWER_OF[modality] in self.towers for modality in modalities)

    def can_mode(self, retrieval_mode: str) -> bool:
        """Whether the model can embed both sides of a retrieval mode such as t2i."""
        letters = retrieval_mode.split("2")
        return all(self.can(_MODALITIES_OF_LETTER[letter]) for letter in letters)

    def reads(self) -> str:
        """What the model takes, in words."""
        return reads_in_words(self.towers)


def reads_in_words(towers: Collection[Tower]) -> str:
    """What a model with these towers takes.

    >>> reads_in_words(["text"])
    'texts only'
    """
    if len(towers) == 2:
        return "texts and images"
    return "texts only" if "text" in towers else "images only"
