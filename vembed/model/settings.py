"""Settings of the model: its name, its inputs, what is trained."""

from typing import Annotated, Literal

from pydantic import Field

from vembed.utils.settings import BY_FAMILY, COMMON, NEEDS_CONSENT, Section, instead_of, only_with

Tower = Literal["text", "vision"]


Dtype = Literal["float32", "bfloat16", "float16", "auto"]


class ModelSettings(Section):
    """The model: where it comes from, how it is built, which parts learn."""

    model_name: str | None = Field(
        None,
        description="Model to tune: a Hugging Face hub id, a local folder, or a checkpoint of an earlier run.",
        json_schema_extra=COMMON,
    )
    text_model_name: str | None = Field(
        None,
        description="Text tower of a composed model (with image_model_name).",
        json_schema_extra=COMMON | instead_of("model_name"),
    )
    image_model_name: str | None = Field(
        None,
        description="Image tower of a composed model (with text_model_name).",
        json_schema_extra=COMMON | instead_of("model_name"),
    )
    encoder_mode: str | None = Field(None, description="Family to use instead of the detected one; `auto` detects.")
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of model_name on the hub.",
        json_schema_extra=only_with("model_name"),
    )
    trust_remote_code: bool = Field(
        False,
        description="Run model code that comes with the checkpoint. Off unless you trust it.",
        json_schema_extra=NEEDS_CONSENT,
    )
    allow_pickled_weights: bool = Field(
        False,
        description="Read weights from .bin files where no safetensors are; tensors only, no code in them is run.",
        json_schema_extra=NEEDS_CONSENT,
    )
    torch_dtype: Dtype = Field(
        "float32",
        description="Dtype of the weights that do not learn (auto: the checkpoint's own); what learns is float32.",
    )
    quantization: Literal["none", "4bit"] | None = Field(
        None,
        description="Hold weights that do not learn in 4 bits (CUDA); default: as an adapter was trained, else none.",
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="How attention is computed; default: the fastest that needs nothing installed."
    )
    torch_compile: bool = Field(
        False,
        description="Compile the towers: slow for the first batches, then faster; needs a C++ compiler.",
    )
    pooling: Literal["cls", "mean", "cls+mean", "last", "max", "gem", "pooler", "own"] | None = Field(
        None,
        description="How token vectors become one vector (composed: in the text tower); default: the checkpoint's way.",
    )
    projection_head: Literal["linear", "mlp"] = Field(
        "linear",
        description="Kind of projection head of a composed model's towers.",
        json_schema_extra=only_with("text_model_name"),
    )
    projection_dim: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Width of a composed model's vectors (default: its text tower's), or of new token vectors (128).",
    )
    fusion: str | None = Field(
        None,
        description="How text and images of one row become one vector: sum, gated, mlp, attention; default: the"
        " checkpoint's own, else sum.",
        json_schema_extra=BY_FAMILY,
    )
    max_length: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="Text tokens kept per item; default: the model's limit. Longer texts are cut and counted.",
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=8192,
        description="Side of the square, in pixels, that images are resized to; default: the model's own.",
    )
    min_pixels: int | None = Field(
        None,
        ge=256,
        description="Lower limit of an image's pixels for models that read images at their native resolution.",
        json_schema_extra=BY_FAMILY,
    )
    max_pixels: int | None = Field(
        None,
        ge=256,
        description="Upper limit of an image's pixels for models that read images at their native resolution.",
        json_schema_extra=BY_FAMILY,
    )
    num_query_tokens: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="Late interaction: fill queries up to so many tokens with mask tokens, which are scored; 0: none.",
        json_schema_extra=BY_FAMILY,
    )
    topk_tokens: int | None = Field(
        None,
        ge=0,
        description="Late interaction: keep a document's tokens that are most similar to its CLS token; 0: keep all.",
        json_schema_extra=BY_FAMILY,
    )
    pool_factor: float | None = Field(
        None,
        ge=1,
        description="Late interaction: join similar tokens of a document until one in so many is left; 1: join none.",
        json_schema_extra=BY_FAMILY,
    )
    distance_threshold: float | None = Field(
        None,
        ge=0,
        description="Late interaction: join tokens of a document up to this Ward distance of cosines; 0: no limit.",
        json_schema_extra=BY_FAMILY,
    )
    document_tokens: int | None = Field(
        None,
        ge=0,
        description="Late interaction: join tokens of a document until so many are left, in training too; 0: all.",
        json_schema_extra=BY_FAMILY,
    )
    mask_prompts: bool | None = Field(
        None,
        description="Late interaction: leave out the tokens of prompts and instructions; default: the checkpoint's.",
        json_schema_extra=BY_FAMILY,
    )
    max_num_patches: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Patches that a picture is cut into at most, for models that keep its shape (SigLIP 2 NaFlex).",
        json_schema_extra=BY_FAMILY,
    )
    query_prompt: str | None = Field(None, description="Text put before every query; default: the checkpoint's own.")
    document_prompt: str | None = Field(
        None, description="Text put before every document; default: the checkpoint's own."
    )
    freeze: tuple[Tower, ...] = Field(
        (), description="Towers that do not learn: text, vision.", json_schema_extra=COMMON
    )
    freeze_layers: dict[Tower, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="How many first layers of a tower, with its embeddings, do not learn: {vision: 8, text: 4}.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory.", json_schema_extra=COMMON
    )
    use_lora: bool = Field(
        False, description="Train low-rank adapters instead of the pretrained weights.", json_schema_extra=COMMON
    )
    use_dora: bool = Field(
        False,
        description="Learn the length of each row of a weight beside its adapter (DoRA).",
        json_schema_extra=only_with("use_lora", True),
    )
    use_rslora: bool = Field(
        False,
        description="Multiply adapters by lora_alpha / sqrt(lora_r), which suits high ranks (rsLoRA).",
        json_schema_extra=only_with("use_lora", True),
    )
    lora_r: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Rank of the adapters; default: 16, or that of the adapter that goes on learning.",
        json_schema_extra=only_with("use_lora", True),
    )
    lora_alpha: float | None = Field(
        None,
        gt=0,
        description="Scale of the adapters: their output is multiplied by lora_alpha / lora_r; default: 32.",
        json_schema_extra=only_with("use_lora", True),
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before the adapters.", json_schema_extra=only_with("use_lora", True)
    )
    lora_target_modules: tuple[str, ...] | None = Field(
        None,
        description="Names (or endings of names) of layers that get adapters; default: the linear ones that its family"
        " names, mostly all of a tower.",
        json_schema_extra=only_with("use_lora", True),
    )
    adapter: Literal["continue", "merge"] = Field(
        "continue",
        description="Whether the adapter that model_name has goes on learning, or is merged first and a new one added.",
        json_schema_extra=only_with("use_lora", True),
    )

    def for_opening(self) -> "ModelSettings":
        """Settings for loading this model's checkpoints: only trust_remote_code and allow_pickled_weights are kept."""
        return ModelSettings(trust_remote_code=self.trust_remote_code, allow_pickled_weights=self.allow_pickled_weights)
