"""Formats of data: the endings of files that are read, and the form of a data set's name on a hub."""

import re
from pathlib import Path

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_ENDINGS = frozenset({".jsonl", ".json", ".ndjson"})
PARQUET_ENDINGS = frozenset({".parquet", ".pq"})
DATA_ENDINGS = JSON_ENDINGS | PARQUET_ENDINGS | DELIMITERS.keys()
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def may_be_hub_name(path: str) -> bool:
    """True if a path could name a data set on a hub: no data file's ending, and at most one slash.

    >>> may_be_hub_name("nlphuji/flickr30k"), may_be_hub_name("pairs.csv"), may_be_hub_name("./pairs")
    (True, False, False)
    """
    return Path(path).suffix.lower() not in DATA_ENDINGS and _HUB_NAME.fullmatch(path) is not None
