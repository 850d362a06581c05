"""Pictures with damage, and things that are none, in a set whose other pictures are whole."""

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.verdict import Verdict
from tests.pictures import make_picture
from tests.tiny import tiny_clip, tiny_colqwen2, tiny_qwen2_vl
from vembed.data.batches.blocks import Block, BlockLoader
from vembed.data.dataset import VisualRetrievalDataset, load_datasets
from vembed.data.images import read_image
from vembed.data.settings import DataSettings
from vembed.data.validation import BadRow, check_dataset
from vembed.model.modeling import VisualRetrievalModel

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
_SIZES = ((40, 30), (1, 1), (3, 900), (900, 3), (300, 1), (64, 64))
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "F")
_MAX_PIXELS = 4_000_000


class Pictures:
    """Sets of four rows: a caption that names a number, and the picture of that number. The third is the input."""

    def __init__(self, folder: Path) -> None:
        builders = {"clip": tiny_clip, "qwen2_vl": tiny_qwen2_vl, "colqwen2": tiny_colqwen2}
        self._models = {
            name: VisualRetrievalModel.from_pretrained(build(folder / name)) for name, build in builders.items()
        }

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """One set, read by one of three models."""
        names = [f"{number}.png" for number in range(4)]
        for number, name in enumerate(names):
            make_picture(number).save(folder / name)
        names[2] = draw.choice(_INPUTS)(draw, folder)
        data = folder / "pairs.jsonl"
        rows = ({"query": f"picture {number}", "positive": name} for number, name in enumerate(names))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = DataSettings.model_validate(
            {"data_path": str(data), "on_bad_sample": "skip", "max_bad_fraction": 1.0, "max_image_pixels": _MAX_PIXELS}
        )
        (dataset,) = load_datasets(str(data), settings)
        check_dataset(dataset, settings)
        model = self._models[draw.choice(sorted(self._models))].with_image_limit(_MAX_PIXELS)
        return _judge(dataset, model, folder / names[2] if names[2].startswith("input") else None)


def _judge(dataset: VisualRetrievalDataset, model: VisualRetrievalModel, path: Path | None) -> Verdict:
    loaded = BlockLoader((dataset,), model.processor, seed=0).load(Block(0, (0, 1, 2, 3), 0))
    for number, row in enumerate(loaded):
        if isinstance(row, BadRow):
            if number != 2:
                return Verdict("wrong", f"a whole picture is bad: {row.reason}")
            named = "pairs.jsonl:3" in row.reason and (path is None or path.name in row.reason)
            return Verdict("skipped" if named else "unnamed", row.reason[:200])
        if row.query.text != f"picture {number}":
            return Verdict("wrong", f"row {number + 1} has the caption {row.query.text}")
        expected = make_picture(number) if number != 2 else None if path is None else _plain_pixels(path)
        read = read_image(dataset[number].positives[0].images[0], max_pixels=_MAX_PIXELS)
        if expected is not None and not np.array_equal(np.asarray(read), np.asarray(expected)):
            return Verdict("wrong", f"row {number + 1}: the pixels are not those of the file")
    model.encode([dataset[number].positives[0] for number in range(4)])
    return Verdict("right")


def _plain_pixels(path: Path) -> PIL.Image.Image | None:
    """The picture as Pillow alone reads it; None where more is asked for (transparency, rotation, 16 bits)."""
    with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
        plain = image.mode in {"RGB", "L", "P", "1"} and not image.has_transparency_data and not image.getexif()
        return image.convert("RGB") if plain else None


def _encoded(draw: random.Random) -> tuple[bytes, str]:
    """A picture's file, and its format."""
    kind = draw.choice(_FORMATS)
    image = make_picture(2, draw.choice(_SIZES))
    try:
        buffer = io.BytesIO()
        image.convert(draw.choice(_MODES)).save(buffer, kind)
    except (OSError, ValueError):  # this format has no such mode
        buffer = io.BytesIO()
        image.save(buffer, kind)
    return buffer.getvalue(), kind


def _damaged_file(draw: random.Random, folder: Path) -> str:
    data, kind = _encoded(draw)
    name = f"input.{draw.choice((kind.lower(), 'png'))}"
    (folder / name).write_bytes(mutate_bytes(data, draw))
    return name


def _whole_file(draw: random.Random, folder: Path) -> str:
    data, kind = _encoded(draw)
    (folder / f"input.{kind.lower()}").write_bytes(data)
    return f"input.{kind.lower()}"


def _other_bytes(draw: random.Random, folder: Path) -> str:
    (folder / "input.png").write_bytes(draw.choice(_NO_PICTURES) + draw.randbytes(draw.choice((0, 4, 400))))
    return "input.png"


def _special_file(draw: random.Random, folder: Path) -> str:
    path = folder / "input.png"
    kind = draw.choice(("pipe", "folder", "loop", "device", "nothing", "unreadable"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "unreadable":
        path.symlink_to("/proc/self/mem")
    return path.name


def _odd_name(draw: random.Random, _folder: Path) -> str:
    return draw.choice(
        ("x" * 300 + ".png", "a/" * 3000 + "b.png", "a\0b.png", "/9j/" + "A" * 60, "~", "..", "\ud800.png")
    )


_NO_PICTURES = (
    b"",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n",
    b"%PDF-1.4\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"GIMP gradient",
    b"\x00\x00\x01\x00",
    b"8BPS\x00\x01",
    b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    b"GIF89a",
    b"P6 99999 99999 255\n",
    b"SIMPLE  =                    T",
    b"\xff\xd8\xff\xe0",
)
_INPUTS: tuple[Callable[[random.Random, Path], str], ...] = (
    *[_damaged_file] * 6,
    *[_whole_file] * 3,
    _other_bytes,
    _special_file,
    _odd_name,
)
