"""The fields of a row, and the mapping that says in which column of the data each one is."""

from collections.abc import Mapping, Sequence

from vembed.errors import ConfigError
from vembed.registry import nearest_names

Columns = Mapping[str, str | Sequence[str]]  # our field -> the data's column, or several of a field of LIST_FIELDS

FIELDS = (
    "query",
    "query_image",
    "positive",
    "positive_image",
    "negatives",
    "negative_images",
    "ignore",
    "group",
    "score",
    "query_embedding",
    "positive_embeddings",
    "negative_embeddings",
)
LIST_FIELDS = ("query_image", "positive", "positive_image", "negatives", "negative_images", "ignore")


def check_column_mapping(columns: Columns) -> None:
    """Raise ConfigError when a key is not one of our fields, or has several columns and holds one thing.

    Says so when the mapping looks reversed.
    """
    unknown = [name for name in columns if name not in FIELDS]
    if unknown:
        raise ConfigError(_unknown_text(columns, unknown[0]))
    for name, several in columns.items():
        if isinstance(several, str):
            continue
        if name not in LIST_FIELDS:
            raise ConfigError(
                f"column_mapping: {name}: is in one column; only {', '.join(LIST_FIELDS)} may have several"
            )
        if not several or len(set(several)) < len(several):
            raise ConfigError(f"column_mapping: {name}: name at least one column, and each once, not {list(several)}")


def _unknown_text(columns: Columns, unknown: str) -> str:
    if all(isinstance(value, str) and value in FIELDS for value in columns.values()):
        right = ", ".join(f"{value}: {name}" for name, value in columns.items())
        return f"column_mapping is 'our field: column of the data'; this looks reversed, write {{{right}}}"
    near = nearest_names(unknown, FIELDS)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"column_mapping: unknown field {unknown!r}{hint} Fields: {', '.join(FIELDS)}"
