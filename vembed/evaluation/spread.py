"""Which figures of a retrieval set are the same for every model, so that they neither compare nor choose.

For a query with m relevant of n ranked documents (those it may find), i = n - m of them irrelevant:

| metric | is fixed where |
|---|---|
| all | i = 0: whatever is found is right |
| `recall@k` | k >= n: everything is found |
| `hit_rate@k` | k > i: so many places cannot hold irrelevant documents alone |

A set's figure is fixed where it is for all of its queries.
"""

from collections.abc import Iterator, Sequence

from vembed.evaluation.relevance import RetrievalSet

_FEW_QUERIES = 10


def fixed_metrics(one: RetrievalSet, metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of the metrics that are the same for every model."""
    return tuple(metric for metric in metrics if _is_fixed(one, metric))


def fixed_reason(one: RetrievalSet) -> str:
    """Why figures of a set are fixed, in words."""
    if _is_fixed(one, "map"):
        return "every document is relevant to every query that may find it"
    return f"it has {len(one.documents)} documents"


def choice_warnings(sets: Sequence[RetrievalSet], metric: str) -> Iterator[str]:
    """What keeps validation sets from choosing the best checkpoint by the metric, and what to do."""
    advice = "give it more rows, of more than one group (val_data_path, or a larger val_fraction)"
    for one in sets:
        if _is_fixed(one, metric):
            other = "" if _is_fixed(one, "map") else ", or choose by another best_metric, as mrr"
            yield (
                f"validation set {one.name} cannot choose a checkpoint: its {metric} is the same for every model,"
                f" because {fixed_reason(one)}; {advice}{other}"
            )
        elif len(one.queries) < _FEW_QUERIES:
            yield (
                f"validation set {one.name} has {len(one.queries)} quer{'y' if len(one.queries) == 1 else 'ies'} and"
                f" {len(one.documents)} documents: too few for its {metric} to tell checkpoints apart but by chance;"
                f" {advice}"
            )


def _is_fixed(one: RetrievalSet, metric: str) -> bool:
    name, _, cut_off = metric.partition("@")
    ranked = len(one.documents) - one.excluded.counts  # [queries]
    irrelevant = ranked - one.relevant.counts
    fixed = irrelevant == 0
    if name == "recall":
        fixed |= ranked <= int(cut_off)
    if name == "hit_rate":
        fixed |= irrelevant < int(cut_off)
    return bool(fixed.all())
