"""The kinds of input by name, and which share of a run each gets."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz.kinds.configs import Configs
from tests.fuzz.kinds.models import Models
from tests.fuzz.kinds.pictures import Pictures
from tests.fuzz.kinds.rows import Rows
from tests.fuzz.kinds.state import RunFolders
from tests.fuzz.kinds.tables import Tables
from tests.fuzz.verdict import Kind

KINDS: Mapping[str, Callable[[Path], Kind]] = {
    "rows": Rows,
    "tables": Tables,
    "pictures": Pictures,
    "configs": Configs,
    "models": Models,
    "state": RunFolders,
}
SHARES: Mapping[str, int] = {"rows": 30, "tables": 15, "pictures": 25, "configs": 20, "models": 5, "state": 5}
