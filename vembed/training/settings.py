"""Settings of the training loop and its optimiser."""

from typing import Annotated, Literal

from pydantic import Field

from vembed.utils.settings import COMMON, Section, instead_of, only_with

Part = Literal["text", "vision", "heads", "scale"]  # of the model
GroupPart = Part | Literal["classes"]  # of all that learns


class TrainingSettings(Section):
    """The run: how long, how large, where it is written, how it is resumed."""

    output_dir: str = Field(
        "output", description="Folder of the run; refused when it holds another one.", json_schema_extra=COMMON
    )
    resume_from_checkpoint: str | None = Field(
        None, description="`latest`, or a checkpoint folder of this run to continue exactly.", json_schema_extra=COMMON
    )
    overwrite_output_dir: bool = Field(
        False,
        description="Delete the run that output_dir holds and start anew.",
        json_schema_extra=instead_of("resume_from_checkpoint"),
    )
    epochs: int = Field(3, ge=1, description="Passes over the training data.", json_schema_extra=COMMON)
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Stop after this many optimiser steps, unless the epochs end first.",
        json_schema_extra=COMMON,
    )
    batch_size: int = Field(
        32, ge=1, description="Rows per loss and process; the in-batch negatives.", json_schema_extra=COMMON
    )
    global_batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows per optimiser step over all processes and accumulation steps.",
        json_schema_extra=instead_of("batch_size"),
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimiser step.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="Autocast dtype; auto: bf16 on a GPU that has it, else no.", json_schema_extra=COMMON
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train.")
    on_nan: Literal["raise", "skip"] = Field(
        "raise", description="A loss or gradient that is no finite number stops the run, or its step is left out."
    )
    seed: int = Field(42, ge=0, description="Seed of order, augmentation, new weights and dropout.")
    train_batch_norm: bool = Field(
        False,
        description="Update batch-norm statistics.",
        json_schema_extra=only_with("use_gradient_cache", False),
    )
    cache_frozen_features: bool = Field(
        False, description="Run frozen towers once per item and keep what they give on disk, for all epochs and runs."
    )
    feature_cache_dir: str | None = Field(
        None,
        description="Folder that keeps the features of frozen towers; default: vembed in the user's cache.",
        json_schema_extra=only_with("cache_frozen_features", True),
    )
    logging_steps: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    report_to: tuple[str, ...] = Field(
        (), description="Trackers that get what metrics.jsonl gets: tensorboard, or those that plugins register."
    )
    eval_steps: int | None = Field(None, ge=1, description="Steps between validations; default: once per epoch.")
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints; default: once per epoch.")
    save_adapter_only: bool = Field(
        False,
        description="Leave the adapters of `final` beside their base; default: merge them into its weights.",
        json_schema_extra=only_with("use_lora", True),
    )
    save_total_limit: int = Field(2, ge=1, description="Checkpoints kept; `best` and `final` are kept besides.")


class OptimizerSettings(Section):
    """AdamW, its rates per part of the model, and the schedule."""

    learning_rate: float = Field(
        2e-5, ge=0, le=10, description="AdamW rate of pretrained weights.", json_schema_extra=COMMON
    )
    head_learning_rate: float = Field(
        1e-3, ge=0, le=10, description="AdamW rate of new weights (heads, adapters).", json_schema_extra=COMMON
    )
    learning_rates: dict[Part, Annotated[float, Field(ge=0, le=10)]] = Field(
        default_factory=dict,
        description="Rate by part, over the two above: {vision: 1e-5, text: 0, heads: 1e-3, scale: 1e-3}.",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer's rate is this times the rate of the layer above it."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW weight decay; never on biases, norms, embeddings' scale or temperature."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first moment decay.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second moment decay.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Schedule after the warmup.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps with a linearly rising rate.")
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Steps with a linearly rising rate.",
        json_schema_extra=instead_of("warmup_ratio"),
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled to at most this norm; 0: never.")
