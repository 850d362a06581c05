"""Model folders with damage in one file. What opens has to embed to finite numbers."""

import random
import shutil
from pathlib import Path

from tests.fuzz.mutations import mutate_file
from tests.fuzz.verdict import Verdict
from tests.tiny import tiny_bert, tiny_clip, tiny_colqwen2, tiny_qwen2_vl
from vembed.model.modeling import VisualRetrievalModel
from vembed.types import Item


class Models:
    """Folders of four families, as they come and as the package saves them."""

    def __init__(self, folder: Path) -> None:
        builders = {"bert": tiny_bert, "clip": tiny_clip, "qwen2_vl": tiny_qwen2_vl, "colqwen2": tiny_colqwen2}
        self._folders = []
        for name, build in builders.items():
            given = Path(build(folder / name))
            VisualRetrievalModel.from_pretrained(str(given)).save_pretrained(folder / f"{name}-saved")
            self._folders += [given, folder / f"{name}-saved"]

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """One file of a copy damaged; JSON files more often than weights."""
        copy = folder / "model"
        shutil.copytree(draw.choice(self._folders), copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        mutate_file(draw.choice(files + 2 * [path for path in files if path.suffix == ".json"]), draw)
        model = VisualRetrievalModel.from_pretrained(str(copy))
        vectors = model.encode([Item(text="a red shoe"), Item(text="number 7, größe")], side="query").vectors
        return Verdict("right") if vectors.isfinite().all() else Verdict("wrong", "the vectors are not finite")
