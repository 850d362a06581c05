"""The figures of one model on one data set, in one call.

metrics = evaluate_simple("output/final", "test.jsonl", "t2i")
metrics["recall@10"]
"""

from collections.abc import Mapping
from pathlib import Path

from vembed.data.dataset import load_datasets
from vembed.data.settings import DataSettings, RetrievalMode
from vembed.evaluation.evaluator import Evaluator
from vembed.evaluation.relevance import retrieval_set
from vembed.evaluation.settings import EvaluationSettings
from vembed.inference import Predictor


def evaluate_simple(
    model: str | Path,
    data_path: str | Path,
    retrieval_mode: RetrievalMode = "t2i",
    *,
    column_mapping: Mapping[str, str | tuple[str, ...]] | None = None,
    eval_k: tuple[int, ...] = (1, 5, 10),
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Metric -> value in [0, 1] of a model (folder or hub id) on a data set; "recall@1" and so on, "mrr", "map".

    Raises ModelError, DataError; nothing is written.
    """
    settings = DataSettings(retrieval_mode=retrieval_mode, column_mapping=dict(column_mapping or {}))
    sets = [retrieval_set(dataset, settings) for dataset in load_datasets(str(data_path), settings)]
    evaluator = Evaluator(sets, EvaluationSettings(eval_k=eval_k))
    return evaluator.measure(Predictor(model, device, trust_remote_code=trust_remote_code).model).sets[0].metrics
