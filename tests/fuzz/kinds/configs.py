"""YAML files with damage, and odd words on a command line. The reference is PyYAML's own reading as texts."""

import random
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.fuzz.mutations import ODD_VALUES, mutate_text
from tests.fuzz.verdict import Verdict
from vembed.config import load_config
from vembed.errors import VembedError

_LINES = (
    "data_path: DATA",
    "val_data_path: [{path: DATA, retrieval_mode: i2i, weight: 2}, DATA]",
    "retrieval_mode: t2i",
    "column_mapping: {query: title, positive: picture}",
    "batch_size: 64",
    "learning_rate: 2e-5",
    "epochs: 3",
    "use_lora: true",
    "use_mrl: true\nmrl_dims: [64, 32]",
    "loss_type: infonce\ntemperature: 0.05",
    "max_steps: 1_000",
    "output_dir: out",
    "seed: 16",
    "warmup_ratio: .1",
    "num_workers: auto",
    "report_to: []",
    "on_bad_sample: skip",
    "preset: null",
)
_ODD_LINES = (
    "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b]",
    "a: &a [*a]",
    "<<: {batch_size: 3}",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "1: 2",
    "null: 3",
    "batch_size: 1:30",
    "epochs: !!int x",
    "epochs: !!python/object/apply:os.system [true]",
    "epochs: !new 3",
    "output_dir: !!binary aGVsbG8=",
    "mrl_dims: !!set {8, 16}",
    "seed: 2020-99-99",
    "seed: 2020-01-01",
    "---\nseed: 1\n---\nseed: 2",
    "%YAML 9.9\n---\nseed: 1",
    "seed: |\n  text",
    "\tseed: 1",
    "plugins: 3",
    "data_path: '\x1b[2J'",
)


class Configs:
    """Files of a few known keys."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._data = folder / "pairs.jsonl"
        self._data.write_text('{"title": "a", "picture": "b.png"}\n')

    def try_one(self, draw: random.Random, folder: Path) -> Verdict:
        """A file, or its keys as words of a command line."""
        lines = [line.replace("DATA", str(self._data)) for line in draw.sample(_LINES, draw.randint(2, 8))]
        damage = draw.random()
        if damage < 0.4:
            at = draw.randrange(len(lines))
            lines[at] = draw.choice((lines[at].split(":")[0] + ": " + draw.choice(ODD_VALUES), draw.choice(_ODD_LINES)))
        text = "\n".join(lines) + "\n"
        if draw.random() < 0.2:
            words = [word.replace(": ", "=", 1) for word in text.splitlines()]
            try:
                flat = load_config(overrides=words).to_flat()
            except VembedError:
                return Verdict("refused")  # a word has no file to be named
            wrong = [word for word in words if isinstance(flat.get(word.partition("=")[0]), bool | int | float)]
            return _judge(flat, "\n".join(word.replace("=", ": ", 1) for word in wrong))  # texts stay as they are
        path = folder / "config.yaml"
        path.write_bytes(mutate_text(text, draw) if damage > 0.7 else text.encode())
        return _judge(load_config(path).to_flat(), path.read_text(encoding="utf-8-sig"))


def _judge(flat: Mapping[str, object], text: str) -> Verdict:
    """Whether each key has the value that the text gives it, as far as YAML's many words for a value are clear."""
    given = yaml.load(text, yaml.BaseLoader)  # texts, lists, mappings
    for key, value in (given or {}).items():
        if key in flat and isinstance(value, str) and not _same(flat[key], value):
            return Verdict("wrong", f"{key}: {flat[key]!r}, but the file says {value!r}")
    return Verdict("right")


def _same(value: object, text: str) -> bool:
    if isinstance(value, bool):
        return text.lower() in ({"true", "yes", "on"} if value else {"false", "no", "off"})
    if isinstance(value, int | float):
        try:
            return float(text.replace("_", "")) == value
        except ValueError:
            return int(text, 0) == value
    return value == text or (value is None and text in {"", "null", "~", "Null", "NULL"}) or not isinstance(value, str)
