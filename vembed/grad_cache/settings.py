"""Settings of the gradient cache."""

from pydantic import Field

from vembed.utils.settings import COMMON, Section, instead_of, only_with


class GradCacheSettings(Section):
    """How a batch larger than memory is cut into chunks."""

    use_gradient_cache: bool = Field(
        True, description="Run the batch in chunks with the exact gradient of the whole batch."
    )
    gradient_cache_chunk_size: int = Field(
        32,
        ge=1,
        description="Rows per chunk. A batch of one chunk is the plain step.",
        json_schema_extra=COMMON | only_with("use_gradient_cache", True),
    )
    gradient_cache_chunk_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens per chunk, padding and image patches counted; rows alike in length share a chunk.",
        json_schema_extra=only_with("use_gradient_cache", True) | instead_of("gradient_cache_chunk_size"),
    )
