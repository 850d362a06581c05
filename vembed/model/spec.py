"""ModelSpec: how a model reads its inputs and how its vectors are compared. Saved with every checkpoint."""

from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vembed.model.settings import Tower
from vembed.types import Side

# Poolings of a tower's tokens; several, joined by "+", are concatenated. `pooler`: a BERT's pooler layer. `own`: the
# pooled output of the model's own code (CLIP's end-of-text token, SigLIP's head, timm's pooling).
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


# Files are read by these too, and a number in them makes tensors of its size.
Width = Annotated[int, Field(ge=0, le=1_000_000)]
Length = Annotated[int, Field(ge=1, le=10_000_000)]
Pixels = Annotated[int, Field(ge=1, le=100_000_000)]


class LayerSpec(BaseModel):
    """A layer between pooling and embedding, of a folder of sentence-transformers; `path` is its subfolder there.

    dense: activation(linear(vector)), to which `residual` adds the vector itself, projected where the widths differ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "layer_norm", "normalize", "dropout"]
    path: str
    inputs: Width = 0
    outputs: Width = 0
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False
    probability: float = 0.0


class LateInteraction(BaseModel):
    """Properties of a late-interaction model's token vectors that are fixed by its files, not by settings.

    kind: `native` for a transformers class for retrieval, which projects and normalises by itself (ColPali); `text` and
    `vlm` for a text encoder and a vision-language model with a projection. architecture: its `model_type`.
    protected_tokens: first tokens of a document that token pooling never merges. skipped_words: the skiplist, tokens
    that documents have no vectors of. query_limit: most tokens of a query. fill_token: the token of query expansion,
    None for the mask token (else EOS). attends_to_fill: the encoder attends to it. normalizes_pools: pooled vectors get
    length 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["native", "text", "vlm"]
    architecture: str
    protected_tokens: Annotated[int, Field(ge=0)] = 0
    skipped_words: tuple[str, ...] = ()
    query_limit: Length | None = None
    attends_to_fill: bool = False
    fill_token: str | None = None
    normalizes_pools: bool = True


class ModelSpec(BaseModel):
    """How a model is used; training, evaluation, encoding and export all read it, so that they cannot differ.

    layers follow the pooling of the text tower. pool_prompt: True if a prompt's tokens are pooled too.
    recipe: the series of text models (bge, e5, ...) whose model cards give what the files do not.
    other_prompts: those that neither side uses, by name, kept for sentence-transformers.
    starts_answer: the chat template is rendered with add_generation_prompt.
    max_length: most tokens of a text. text_limit: the most that the model supports. pad_to: fixed text length of models
    that were trained with one (SigLIP). image_size: side of square images in pixels. min_pixels, max_pixels: size of
    images that keep their aspect ratio; max_num_patches: the same for NaFlex. None: those of the image processor.
    own_code: the class of the checkpoint's remote code, None if transformers has one.

    Of models with a vector per token (scoring "maxsim"): num_query_tokens is the length of expanded queries, with mask
    tokens. A document keeps the topk_tokens that are most similar to its summary token (by `pooling`: cls or last);
    these are merged to one in pool_factor, to document_tokens at most, and up to distance_threshold. mask_prompts: no
    vectors of prompts' tokens.

    fusion: how the vectors of a row's text and images become one.
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
    max_length: Length | None = None
    text_limit: Length | None = None
    pad_to: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    starts_answer: bool = True
    lower_case: bool = False
    image_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    min_pixels: Pixels | None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    max_num_patches: Annotated[int, Field(ge=1, le=65536)] | None = None
    own_code: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    other_prompts: dict[str, str] = {}
    recipe: str | None = None
    projection_head: Literal["linear", "mlp"] | None = None
    projection_dim: Annotated[int, Field(ge=1, le=65536)] | None = None
    late: LateInteraction | None = None
    num_query_tokens: Annotated[int, Field(ge=0, le=4096)] | None = None
    topk_tokens: Annotated[int, Field(ge=0)] | None = None
    pool_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    distance_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    document_tokens: Annotated[int, Field(ge=0)] | None = None
    mask_prompts: bool = False
    fusion: str = "sum"

    def prompt(self, side: Side) -> str:
        """The text put before every text of that side."""
        return self.query_prompt if side == "query" else self.document_prompt

    @property
    def treats_sides_alike(self) -> bool:
        """True if an item has the same embedding as a query and as a document, and need not be encoded twice."""
        skips = self.late is not None and bool(self.late.skipped_words or self.late.query_limit)
        return self.query_prompt == self.document_prompt and not (
            skips or self.num_query_tokens or self.reduces_documents
        )

    @property
    def reduces_documents(self) -> bool:
        """True if documents are pruned or pooled to fewer vectors than tokens."""
        pools = (self.pool_factor or 1) > 1 or bool(self.document_tokens or self.distance_threshold)
        return pools or bool(self.topk_tokens)

    def supports(self, modalities: Iterable[Modality]) -> bool:
        """True if the model reads all of these modalities.

        >>> spec = ModelSpec(family="text", preset="text", towers=("text",), pooling={"text": "mean"})
        >>> spec.supports(["text"]), spec.supports(["text", "image"])
        (True, False)
        """
        return all(_TOWER_OF[modality] in self.towers for modality in modalities)

    def supports_mode(self, retrieval_mode: str) -> bool:
        """True if the model can embed both sides of a retrieval mode such as t2i."""
        letters = retrieval_mode.split("2")
        return all(self.supports(_MODALITIES_OF_LETTER[letter]) for letter in letters)

    def reads(self) -> str:
        """The model's modalities in words: "texts and images"."""
        return reads_in_words(self.towers)


def reads_in_words(towers: Collection[Tower]) -> str:
    """The modalities of a model with these towers, in words.

    >>> reads_in_words(["text"])
    'texts only'
    """
    if len(towers) == 2:
        return "texts and images"
    return "texts only" if "text" in towers else "images only"
