"""Prepares everything the demo reads: the emoji data set and two pretrained models, as files that any run could use."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vembed.demo.concepts import Split
from vembed.demo.emoji import load_emoji
from vembed.demo.models import write_efficientnet, write_minilm
from vembed.demo.pictures import write_pictures
from vembed.demo.rows import EVALUATION_ROWS, TRAINING_ROWS, write_rows

# Raise it when what is written changes, so that folders of earlier versions are written again.
_FORMAT = "1"
_MARKER = "complete"


@dataclass(frozen=True)
class DemoFiles:
    """Where the demo's data and models lie.

    `train` is keyed by what a set teaches ("names_to_pictures"); `val` and `test` by retrieval mode ("t2i").
    """

    text_model: Path
    image_model: Path
    train: dict[str, Path]
    val: dict[str, Path]
    test: dict[str, Path]


def prepare(folder: Path) -> DemoFiles:
    """Write what is missing of the demo's data and models into `folder`, and say where it is.

    Raises UsageError that names the extra to install when a package is missing, DataError when its files are others.
    """
    files = _demo_files(folder)
    _write_once(folder / "emoji", lambda: _write_emoji(folder / "emoji", files))
    _write_once(folder / "models", lambda: _write_models(files))
    return files


def _demo_files(folder: Path) -> DemoFiles:
    emoji, models = folder / "emoji", folder / "models"
    return DemoFiles(
        text_model=models / "all-MiniLM-L6-v2",
        image_model=models / "efficientnet-lite0",
        train={name: emoji / f"train_{name}.jsonl" for name in TRAINING_ROWS},
        val={mode: emoji / f"val_{mode}.jsonl" for mode in EVALUATION_ROWS},
        test={mode: emoji / f"test_{mode}.jsonl" for mode in EVALUATION_ROWS},
    )


def _write_once(folder: Path, write: Callable[[], None]) -> None:
    """Run `write` unless an earlier call completed it; the marker comes last, so that a broken-off call is redone."""
    marker = folder / _MARKER
    if marker.is_file() and marker.read_text(encoding="utf-8") == _FORMAT:
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    write()
    unfinished = folder / f"{_MARKER}.{os.getpid()}"
    unfinished.write_text(_FORMAT, encoding="utf-8")
    unfinished.replace(marker)


def _write_emoji(folder: Path, files: DemoFiles) -> None:
    emojis = load_emoji()
    write_pictures(emojis, folder)
    for name, make_rows in TRAINING_ROWS.items():
        write_rows(make_rows([emoji for emoji in emojis if emoji.split == "train"]), files.train[name])
    held_out: list[tuple[Split, dict[str, Path]]] = [("val", files.val), ("test", files.test)]
    for split, paths in held_out:
        for mode, make_rows in EVALUATION_ROWS.items():
            write_rows(make_rows([emoji for emoji in emojis if emoji.split == split]), paths[mode])


def _write_models(files: DemoFiles) -> None:
    write_minilm(files.text_model)
    write_efficientnet(files.image_model)
