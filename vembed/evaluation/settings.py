"""Settings of evaluation and report."""

from typing import Annotated

from pydantic import Field

from vembed.utils.settings import Section


class EvaluationSettings(Section):
    """What is measured, how sure it is, and what is written."""

    eval_batch_size: int = Field(64, ge=1, description="Items encoded at once; figures do not depend on it.")
    eval_k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10), min_length=1, description="Cut-offs of recall, hit rate and nDCG."
    )
    best_metric: str = Field("ndcg@10", description="Metric, averaged over the validation sets, that chooses `best`.")
    exclude_query_image: bool = Field(
        False, description="Take the pictures that a query itself shows out of the gallery it searches (m2i, m2m, i2m)."
    )
    bootstrap_samples: int = Field(1000, ge=0, description="Resamplings behind the 95 % intervals; 0: no intervals.")
    gallery_size: int = Field(12, ge=0, description="Queries shown in the report with their results before and after.")
    report: bool = Field(True, description="Measure base and tuned model when training ends, and write report/.")
