"""Real picture files and data files for the tests, each a function of its seed."""

import colorsys
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image


def make_picture(seed: int, size: tuple[int, int] = (40, 30)) -> PIL.Image.Image:
    """An RGB picture: a coloured disc on another colour with a little noise. Differs for every seed."""
    draw = np.random.default_rng([seed, 7])
    width, height = size
    ground, disc = draw.integers(0, 200, 3), draw.integers(55, 256, 3)
    y, x = np.mgrid[:height, :width]
    centre_x, centre_y = draw.uniform(0.3, 0.7, 2) * (width, height)
    inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (min(size) * draw.uniform(0.2, 0.45)) ** 2
    pixels = np.where(inside[..., None], disc, ground) + draw.integers(-5, 6, (height, width, 3))
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_picture(path: str | Path, seed: int, size: tuple[int, int] = (40, 30)) -> str:
    """A picture file of the kind that the path's ending names. Returns the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    make_picture(seed, size).save(path)
    return str(path)


def write_jsonl(path: str | Path, rows: Sequence[object]) -> str:
    """One row per line; a str is written as it is, so that a test can write a broken line."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> str:
    """A file with the columns of the first row."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_pairs(
    folder: str | Path, n: int, mode: str = "t2i", *, num_negatives: int = 0, groups: int | None = None, seed: int = 0
) -> str:
    """`n` rows of any retrieval mode with their pictures beside them; returns the path of `pairs.jsonl`.

    Row i has `num_negatives` negatives (documents of other seeds), and group "g<i % groups>" when `groups` is given.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for i in range(n):
        row: dict[str, object] = {
            "query": _cell(root, mode[0], "query", seed + i),
            "positive": _cell(root, mode[2], "positive", seed + i),
        }
        if num_negatives:
            numbers = range(seed + n + i * num_negatives, seed + n + (i + 1) * num_negatives)
            row["negatives"] = [_cell(root, mode[2], "negative", number) for number in numbers]
        if groups is not None:
            row["group"] = f"g{i % groups}"
        rows.append(row)
    return write_jsonl(root / "pairs.jsonl", rows)


def write_classes(folder: str | Path, num_classes: int, per_class: int, *, seed: int = 0) -> str:
    """Rows of two pictures of one class each, group "c<number>"; returns the path of `classes.jsonl`.

    The hue tells the class; how dark and how pale it is does not, nor does the square on it.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_classes * per_class):
        names = [f"{side}_{number}.png" for side in ("query", "positive")]
        for side, name in enumerate(names):
            _write_of_class(root / name, number % num_classes, num_classes, [seed, number, side])
        rows.append({"query": names[0], "positive": names[1], "group": f"c{number % num_classes}"})
    return write_jsonl(root / "classes.jsonl", rows)


def _write_of_class(path: Path, number: int, num_classes: int, seed: Sequence[int]) -> None:
    draw = np.random.default_rng(seed)
    hue, saturation, value = number / num_classes, draw.uniform(0.4, 1.0), draw.uniform(0.3, 1.0)
    pixels = np.full((32, 32, 3), [255 * part for part in colorsys.hsv_to_rgb(hue, saturation, value)])
    x, y = draw.integers(0, 24, 2)
    pixels[y : y + 8, x : x + 8] = draw.integers(0, 256, 3)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)


def _cell(root: Path, kind: str, role: str, number: int) -> object:
    text = f"{role} number {number} of a small data set"
    if kind == "t":
        return text
    name = f"{role}_{number}.png"
    write_picture(root / name, number + {"query": 0, "positive": 100_000, "negative": 200_000}[role])
    return name if kind == "i" else {"text": text, "image": name}
