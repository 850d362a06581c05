"""Settings of the gradient cache."""

from typing import Annotated, Literal

from pydantic import Field

from vembed.utils.settings import COMMON, Section, instead_of, only_with


class GradCacheSettings(Section):
    """How a batch larger than memory is cut into chunks."""

    use_gradient_cache: bool = Field(
        True, description="Run the batch in chunks with the exact gradient of the whole batch."
    )
    gradient_cache_chunk_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        32,
        description="Rows per chunk, or auto: as many as memory holds. A batch of one chunk is the plain step.",
        json_schema_extra=COMMON | only_with("use_gradient_cache", True),
    )
    gradient_cache_chunk_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description=(
            "Tokens per chunk, padding and image patches counted, or auto: as many as memory holds, on a CPU at most"
            " 4096; rows alike in length share a chunk."
        ),
        json_schema_extra=only_with("use_gradient_cache", True) | instead_of("gradient_cache_chunk_size"),
    )
    gradient_cache_retain: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description=(
            "Share of a batch's chunks, the last ones, that keep their graphs and need no second forward, or auto: as"
            " many as memory holds; one always does; default: 0, and auto with gradient_checkpointing."
        ),
        json_schema_extra=only_with("use_gradient_cache", True),
    )
    gradient_cache_states_gib: float = Field(
        1.0,
        ge=0,
        description=(
            "GiB of what a frozen tower gives for every token (the vision tower of a vision-language model, the encoder"
            " of a ColBERT), kept for the second forward, so that it runs once; of chunks beyond that it runs twice."
        ),
        json_schema_extra=only_with("use_gradient_cache", True),
    )
    gradient_cache_memory_gib: float | None = Field(
        None,
        gt=0,
        description=(
            "GiB beyond the loaded model that auto may fill with a step; default: 0.9 of what a GPU has free, half of"
            " what a CPU has."
        ),
        json_schema_extra=only_with("use_gradient_cache", True),
    )
