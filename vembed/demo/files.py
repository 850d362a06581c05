"""Prepares everything the demo reads: the emoji data set and two pretrained models, as files that any run could use."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vembed.demo.changes import Change, changes
from vembed.demo.concepts import Split
from vembed.demo.emoji import Emoji, load_emoji, load_toned
from vembed.demo.models import write_efficientnet, write_minilm
from vembed.demo.pictures import TWEMOJI_SHA256, TWEMOJI_TONED_SHA256, write_pictures
from vembed.demo.rows import (
    CHANGE_EVALUATION_ROWS,
    CHANGE_TRAINING_ROWS,
    EVALUATION_ROWS,
    TRAINING_ROWS,
    MakeChangeRows,
    MakeRows,
    write_rows,
)

# Raise it when what is written changes, so that folders of earlier versions are written again.
_FORMAT = "2"
_MARKER = "complete"


@dataclass(frozen=True)
class DemoFiles:
    """The files of the demo's data and models.

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
    modes = (*EVALUATION_ROWS, *CHANGE_EVALUATION_ROWS)
    return DemoFiles(
        text_model=models / "all-MiniLM-L6-v2",
        image_model=models / "efficientnet-lite0",
        train={name: emoji / f"train_{name}.jsonl" for name in (*TRAINING_ROWS, *CHANGE_TRAINING_ROWS)},
        val={mode: emoji / f"val_{mode}.jsonl" for mode in modes},
        test={mode: emoji / f"test_{mode}.jsonl" for mode in modes},
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
    toned = load_toned(emojis)
    write_pictures(emojis, folder, twemoji_sha256=TWEMOJI_SHA256)
    write_pictures(toned, folder, twemoji_sha256=TWEMOJI_TONED_SHA256)
    every_change = changes(emojis, toned)
    _write_split("train", files.train, emojis, TRAINING_ROWS)
    _write_changes("train", files.train, every_change, CHANGE_TRAINING_ROWS)
    held_out: list[tuple[Split, dict[str, Path]]] = [("val", files.val), ("test", files.test)]
    for split, paths in held_out:
        _write_split(split, paths, emojis, EVALUATION_ROWS)
        _write_changes(split, paths, every_change, CHANGE_EVALUATION_ROWS)


def _write_split(
    split: Split, paths: Mapping[str, Path], emojis: Sequence[Emoji], sets: Mapping[str, MakeRows]
) -> None:
    for name, make_rows in sets.items():
        write_rows(make_rows([emoji for emoji in emojis if emoji.split == split]), paths[name])


def _write_changes(
    split: Split, paths: Mapping[str, Path], every_change: Sequence[Change], sets: Mapping[str, MakeChangeRows]
) -> None:
    for name, make_rows in sets.items():
        chosen = [change for change in every_change if change.base.split == split]
        write_rows(make_rows(chosen, paths[name].parent), paths[name])


def _write_models(files: DemoFiles) -> None:
    write_minilm(files.text_model)
    write_efficientnet(files.image_model)
