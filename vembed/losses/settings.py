"""Settings of the training objective."""

from typing import Literal

from pydantic import Field

from vembed.utils.settings import COMMON, Section


class LossSettings(Section):
    """Which loss, and what every softmax loss shares."""

    loss_type: str = Field(
        "infonce", description="Name of the loss; docs/losses.md says which fits your data.", json_schema_extra=COMMON
    )
    temperature: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Scores are divided by it; default: the checkpoint's own, else 0.05.",
        json_schema_extra=COMMON,
    )
    learn_temperature: bool = Field(
        True, description="Train the temperature (as the log of its inverse, scale kept at most 100)."
    )


class InfoNCESettings(Section):
    """Options of loss_type: infonce."""

    loss_direction: Literal["both", "query_to_document", "document_to_query"] = Field(
        "both", description="Whether queries pick their documents, documents their queries, or both."
    )
